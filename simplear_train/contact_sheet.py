"""Sixteen prompts, fixed seeds, nothing selected: what a model folder draws, on one picture.

    python -m simplear_train.contact_sheet --model simplear_engine/default_model --out docs/images/default_model_contact_sheet.png
    python -m simplear_train.contact_sheet --model ... --out ... --plain-torch       without the engine (sample.py)
    python -m simplear_train.contact_sheet --model simplear_engine/default_model --out docs/images/quantization.png \\
        --dtypes float32 bfloat16 int8 int4 --count 12                               a row for each dtype

Prompt number i has seed i. The engine and plain torch draw different noise, so their sheets differ.
"""

import argparse
import json
import textwrap
from pathlib import Path

import numpy as np

PROMPTS = (
    "a red apple", "a cat", "two dogs", "a blue car",
    "a panda", "a hamburger", "three bananas", "a cat and a dog",
    "a rocket", "a yellow umbrella", "a penguin left of a tree", "four strawberries",
    "a sailboat", "a purple heart", "a robot on a blue background", "a lion above a pizza",
)  # fmt: skip


def draw_with_engine(
    folder: Path, prompts: tuple[str, ...], guidance_scale: float, dtype: str = "auto"
) -> list[np.ndarray]:
    from simplear_engine import Engine

    engine = Engine.from_pretrained(str(folder), dtype=dtype)
    return [
        np.asarray(engine.generate(prompt, seed=seed, guidance_scale=guidance_scale)[0].pil)
        for seed, prompt in enumerate(prompts)
    ]


def draw_with_torch(folder: Path, prompts: tuple[str, ...], guidance_scale: float, seed: int = 0) -> list[np.ndarray]:
    from tokenizers import Tokenizer

    from .image_tokenizer import load_image_tokenizer
    from .model_folder import load_model
    from .sample import sample_codes

    entry = json.loads((folder / "simplear.json").read_text())
    image_tokenizer = load_image_tokenizer(folder / "vq" / "tokenizer.safetensors")
    height, width = (entry[key] // image_tokenizer.config.spatial_compression for key in ("height", "width"))
    text = Tokenizer.from_file(str(folder / "tokenizer.json"))
    codes = sample_codes(load_model(folder), text, list(prompts), height * width, guidance_scale, 1.0, seed)
    pictures = image_tokenizer.decode(codes.view(-1, height, width)).detach().clamp(-1, 1)
    return list(((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())


def sheet(
    pictures: list[np.ndarray], captions: tuple[str, ...], columns: int = 4, margin: int = 8,
    row_names: tuple[str, ...] = (), outlines: tuple[str, ...] = (),
):  # fmt: skip
    """A PIL picture of `pictures` in reading order, captions beneath and, where given, names left of the rows and an
    outline in its own colour around each picture."""
    from PIL import Image, ImageDraw, ImageFont

    side, text_height, left = 160, 20, 70 if row_names else 0
    font = ImageFont.load_default(13)
    rows = -(-len(pictures) // columns)
    canvas = Image.new(
        "RGB", (left + columns * (side + margin) + margin, rows * (side + text_height + margin) + margin), "white"
    )
    pen = ImageDraw.Draw(canvas)
    for i, name in enumerate(row_names):
        pen.text((margin, margin + i * (side + text_height + margin) + side // 2), name, fill="black", font=font)
    for i, (picture, caption) in enumerate(zip(pictures, captions)):
        x, y = left + margin + i % columns * (side + margin), margin + i // columns * (side + text_height + margin)
        canvas.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC), (x, y))
        if outlines:
            pen.rectangle((x - 1, y - 1, x + side, y + side), outline=outlines[i], width=3)
        else:
            pen.rectangle((x, y, x + side - 1, y + side - 1), outline="#cccccc")
        pen.text((x, y + side + 2), textwrap.shorten(caption, 26), fill="black", font=font)
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of ship_default")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--guidance-scale", type=float, help="instead of the folder's own")
    parser.add_argument("--prompts", type=Path, help="file with one prompt a line, instead of the built-in sixteen")
    parser.add_argument("--count", type=int, help="only the first so many prompts")
    parser.add_argument("--dtypes", nargs="+", help="draw all prompts in each of them, a row for each")
    parser.add_argument("--plain-torch", action="store_true")
    args = parser.parse_args()
    if args.plain_torch and args.dtypes:
        parser.error("--dtypes: expected the engine, not --plain-torch")
    prompts = (tuple(args.prompts.read_text().splitlines()) if args.prompts else PROMPTS)[: args.count]
    scale = args.guidance_scale or json.loads((args.model / "simplear.json").read_text())["guidance_scale"]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.dtypes:
        pictures = [p for dtype in args.dtypes for p in draw_with_engine(args.model, prompts, scale, dtype)]
        names = tuple(args.dtypes)
        sheet(pictures, prompts * len(names), columns=len(prompts), row_names=names).save(args.out, optimize=True)
    else:
        draw = draw_with_torch if args.plain_torch else draw_with_engine
        sheet(draw(args.model, prompts, scale), prompts).save(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
