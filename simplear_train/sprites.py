"""Fetch the emoji art and turn it into sprites.

    python -m simplear_train.sprites --cache-dir ~/.cache/simplear [--sheet sheet.png]

Art: npm packages @iconify-json/noto (Apache-2.0) and @iconify-json/fluent-emoji-flat (MIT), words: emojibase-data
(MIT; CLDR text under the Unicode licence), at the pinned versions below. They are fetched with `npm pack`, never
installed, and rasterised with resvg at exactly the sizes that scenes use, so no sprite is ever resampled.
"""

import argparse
import io
import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from .concepts import CONCEPTS, HUES

PACKAGES = {
    "noto": ("@iconify-json/noto@1.2.9", "iconify-json-noto-1.2.9.tgz"),
    "fluent": ("@iconify-json/fluent-emoji-flat@1.2.6", "iconify-json-fluent-emoji-flat-1.2.6.tgz"),
    "emojibase": ("emojibase-data@17.0.0", "emojibase-data-17.0.0.tgz"),
}
DEFAULT_CACHE = Path("~/.cache/simplear").expanduser()


def fetch(package: str, cache_dir: Path) -> Path:
    """Path of the package's tarball, downloaded on first use. It appears when it is whole: several processes of a
    training may want it at once, and one that is ended leaves no half of it."""
    spec, file_name = PACKAGES[package]
    folder = cache_dir / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / file_name).exists():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            subprocess.run(["npm", "pack", "--silent", spec], cwd=own, check=True, stdout=subprocess.DEVNULL)
            (Path(own) / file_name).replace(folder / file_name)
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


class Sprites:
    """sprites[icon, colour or None, side in pixels]: uint8 [side, side, 4], not premultiplied. `plain` holds the icons in
    their own colours; a replaced hue is worked out when somebody first asks for it."""

    def __init__(self, plain: dict[tuple[str, int], np.ndarray]):
        self.plain = plain
        self._recoloured: dict[tuple[str, str, int], np.ndarray] = {}

    def __getitem__(self, key: tuple[str, str | None, int]) -> np.ndarray:
        icon, colour, side = key
        if colour is None:
            return self.plain[icon, side]
        if key not in self._recoloured:
            self._recoloured[key] = recolour(self.plain[icon, side], colour)
        return self._recoloured[key]


def load_sprites(sides: tuple[int, ...], cache_dir: Path = DEFAULT_CACHE, concepts=CONCEPTS) -> Sprites:
    """Every icon that scenes may use. Rasterised once, then read from one npz file."""
    wanted = [(icon, side) for c in concepts for icon in c.icons for side in sides]
    path = cache_dir / f"icons-{'-'.join(map(str, sides))}.npz"
    icons: dict[tuple[str, int], np.ndarray] = {}
    if path.exists():
        with np.load(path) as file:
            for key in file.files:
                icon, side = key.split("|")
                icons[icon, int(side)] = file[key]
    missing = [key for key in wanted if key not in icons]
    if missing:
        icon_sets = {style: read_package_json(style, "package/icons.json", cache_dir) for style in ("noto", "fluent")}
        for icon, side in missing:
            style, name = icon.split(":")
            icons[icon, side] = rasterise(icon_sets[style], name, side)
        temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez(temporary, **{f"{icon}|{side}": image for (icon, side), image in icons.items()})
        temporary.replace(path)
    return Sprites({key: icons[key] for key in wanted})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--sheet", type=Path, help="also write a picture of all sprites, to judge them by eye")
    args = parser.parse_args()
    sprites = load_sprites((96, 64), args.cache_dir)
    print(f"{len(sprites.plain)} icons, {sum(image.nbytes for image in sprites.plain.values()) / 1e6:.1f} MB")
    if args.sheet:
        from PIL import Image

        # A row holds two icons, each in its own colours and then in all that it may take.
        rows = [[sprites[icon, None, 64]] for c in CONCEPTS for icon in c.icons if icon != c.any_hue]
        rows += [[sprites[c.any_hue, hue, 64] for hue in (None, *HUES)] for c in CONCEPTS if c.any_hue]
        width = 64 * (1 + len(HUES))
        sheet = Image.new("RGB", (2 * width, -(-len(rows) // 2) * 64), "white")
        for i, row in enumerate(rows):
            for j, tile in enumerate(row):
                image = Image.fromarray(tile)
                sheet.paste(image, (i % 2 * width + j * 64, i // 2 * 64), image)
        sheet.save(args.sheet)


if __name__ == "__main__":
    main()
