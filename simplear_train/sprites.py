"""Fetch the emoji art and turn it into sprites.

    python -m simplear_train.sprites --cache-dir ~/.cache/simplear [--sheet sheet.png]

Art: npm packages @iconify-json/noto (Apache-2.0) and @iconify-json/fluent-emoji-flat (MIT), words: emojibase-data
(MIT; CLDR text under the Unicode licence), at the pinned versions below. They are fetched with `npm pack`, never
installed, and rasterised with resvg at exactly the sizes that scenes use, so no sprite is ever resampled.
"""

import argparse
import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np

from .concepts import CONCEPTS, HUES

PACKAGES = {
    "noto": ("@iconify-json/noto@1.2.9", "iconify-json-noto-1.2.9.tgz"),
    "fluent": ("@iconify-json/fluent-emoji-flat@1.2.6", "iconify-json-fluent-emoji-flat-1.2.6.tgz"),
    "emojibase": ("emojibase-data@17.0.0", "emojibase-data-17.0.0.tgz"),
}
DEFAULT_CACHE = Path("~/.cache/simplear").expanduser()

# (icon, colour or None, side in pixels) -> uint8 [side, side, 4], not premultiplied
Sprites = dict[tuple[str, str | None, int], np.ndarray]


def fetch(package: str, cache_dir: Path) -> Path:
    """Path of the package's tarball, downloaded on first use."""
    spec, file_name = PACKAGES[package]
    folder = cache_dir / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / file_name).exists():
        subprocess.run(["npm", "pack", "--silent", spec], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / file_name


def read_package_json(package: str, member: str, cache_dir: Path):
    with tarfile.open(fetch(package, cache_dir)) as tar:
        return json.load(tar.extractfile(member))


def emoji_words(cache_dir: Path) -> dict[str, tuple[str, ...]]:
    """emojibase label, as an icon is named ("red-apple") -> its tags."""
    records = read_package_json("emojibase", "package/en/data.json", cache_dir)
    return {r["label"].replace(" ", "-"): tuple(r.get("tags", ())) for r in records}


def rasterise(icon_set: dict, name: str, side: int) -> np.ndarray:
    import resvg_py
    from PIL import Image

    icons = icon_set["icons"]
    icon = icons.get(name) or icons[icon_set["aliases"][name]["parent"]]
    width, height = (icon.get(key, icon_set.get(key)) for key in ("width", "height"))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True))
    return np.array(Image.open(io.BytesIO(png)).convert("RGBA"))


def recolour(sprite: np.ndarray, colour: str) -> np.ndarray:
    """Replace the sprite's main hue and keep its shading; other hues (an apple's leaf) and greys stay as they are."""
    from PIL import Image

    target_hue, saturation_factor, value_factor = HUES[colour]
    hsv = np.array(Image.fromarray(sprite[..., :3]).convert("HSV")).astype(np.float32)
    hue, saturation, value = hsv[..., 0] * (360 / 255), hsv[..., 1], hsv[..., 2]
    vivid = (saturation > 60) & (value > 50) & (sprite[..., 3] > 128)
    histogram = np.bincount((hue[vivid] // 10).astype(int) % 36, weights=saturation[vivid], minlength=36)
    main_hue = np.argmax(histogram + np.roll(histogram, 1) + np.roll(histogram, -1)) * 10 + 5
    distance = np.abs((hue - main_hue + 180) % 360 - 180)
    changed = (distance < 45) & (saturation > 40)
    hsv[..., 0] = np.where(changed, target_hue * 255 / 360, hsv[..., 0])
    hsv[..., 1] = np.where(changed, np.clip(saturation * saturation_factor, 0, 255), saturation)
    hsv[..., 2] = np.where(changed, np.clip(value * value_factor, 0, 255), value)
    rgb = np.array(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB"))
    return np.concatenate([rgb, sprite[..., 3:]], axis=-1)


def load_sprites(sides: tuple[int, ...], cache_dir: Path = DEFAULT_CACHE, concepts=CONCEPTS) -> Sprites:
    """Every sprite that scenes may use. Rasterised once, then read from one npz file."""
    wanted = [(icon, None, side) for c in concepts for icon in c.icons for side in sides]
    wanted += [(c.any_hue, hue, side) for c in concepts if c.any_hue for hue in HUES for side in sides]
    path = cache_dir / f"sprites-{'-'.join(map(str, sides))}.npz"
    cached: Sprites = {}
    if path.exists():
        with np.load(path) as file:
            for key in file.files:
                icon, colour, side = key.split("|")
                cached[icon, colour or None, int(side)] = file[key]
    if all(key in cached for key in wanted):
        return {key: cached[key] for key in wanted}
    icon_sets = {style: read_package_json(style, "package/icons.json", cache_dir) for style in ("noto", "fluent")}
    sprites: Sprites = {}
    for icon, colour, side in wanted:
        style, name = icon.split(":")
        plain = rasterise(icon_sets[style], name, side)
        sprites[icon, colour, side] = recolour(plain, colour) if colour else plain
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, **{f"{icon}|{colour or ''}|{side}": image for (icon, colour, side), image in sprites.items()})
    temporary.replace(path)
    return sprites


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--sheet", type=Path, help="also write a picture of all sprites, to judge them by eye")
    args = parser.parse_args()
    sprites = load_sprites((96, 64), args.cache_dir)
    print(f"{len(sprites)} sprites, {sum(s.nbytes for s in sprites.values()) / 1e6:.1f} MB")
    if args.sheet:
        from PIL import Image

        tiles = [image for (_, _, side), image in sprites.items() if side == 64]
        columns = 24
        sheet = Image.new("RGB", (columns * 64, -(-len(tiles) // columns) * 64), "white")
        for i, tile in enumerate(tiles):
            image = Image.fromarray(tile)
            sheet.paste(image, (i % columns * 64, i // columns * 64), image)
        sheet.save(args.sheet)


if __name__ == "__main__":
    main()
