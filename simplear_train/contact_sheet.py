"""Sixteen prompts, fixed seeds, nothing selected: what a model folder draws, on one picture.

    python -m simplear_train.contact_sheet --model simplear_engine/default_model --out docs/images/default_model_contact_sheet.png
    python -m simplear_train.contact_sheet --model simplear_engine/default_model --out docs/images/quantization.png \\
        --dtypes float32 bfloat16 int8 int4 --count 12                               a row for each dtype

Prompt number i has seed i.
"""

import argparse
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
    folder: Path, prompts: tuple[str, ...], guidance_scale: float | None, dtype: str = "auto"
) -> list[np.ndarray]:
    from simplear_engine import Engine

    engine = Engine.from_pretrained(str(folder), dtype=dtype)
    return [
        np.asarray(engine.generate(prompt, seed=seed, guidance_scale=guidance_scale)[0].pil)
        for seed, prompt in enumerate(prompts)
    ]


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
    args = parser.parse_args()
    prompts = (tuple(args.prompts.read_text().splitlines()) if args.prompts else PROMPTS)[: args.count]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.dtypes:
        pictures = [
            p for dtype in args.dtypes for p in draw_with_engine(args.model, prompts, args.guidance_scale, dtype)
        ]
        names = tuple(args.dtypes)
        sheet(pictures, prompts * len(names), columns=len(prompts), row_names=names).save(args.out, optimize=True)
    else:
        sheet(draw_with_engine(args.model, prompts, args.guidance_scale), prompts).save(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
