"""Pictures to PNG files that say how they were made.

Two text chunks: `parameters`, the line format that image browsers have learned from A1111's web UI, and `simplear`,
JSON with every value exactly. Latin-1 text becomes tEXt, other text iTXt. A prompt cannot forge lines of
`parameters`: its control characters become blanks there (the JSON keeps them, escaped). Pillow is imported when the
first picture is handled. Nothing here knows how pictures come to be.
"""

import io
import json
import math
import unicodedata
from pathlib import Path

from simplear_engine.atomic_file import atomic_writer
from simplear_engine.errors import InvalidRequestError

_LINE_BREAKING_CATEGORIES = ("Cc", "Zl", "Zp")


def save_png(pil_image, path, metadata: dict[str, str] | None = None) -> None:
    """Writes `pil_image` to `path` as PNG, whole or not at all, with one text chunk per item of `metadata`.

    InvalidRequestError where the name does not end in .png or the folder is missing or not writable.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InvalidRequestError(f"cannot write {path}: expected a name that ends in .png")
    data = png_bytes(pil_image, metadata)
    with atomic_writer(path) as file:
        file.write(data)


def png_bytes(pil_image, metadata: dict[str, str] | None = None) -> bytes:
    """`pil_image` as PNG, with one text chunk per item of `metadata`."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in (metadata or {}).items():
        # Chooses tEXt or iTXt by whether the text is Latin-1. NUL ends a chunk's text, so it cannot stand in one.
        # A folder's name may hold bytes that are no text.
        chunks.add_text(key, value.replace("\0", " ").encode("utf-8", "backslashreplace").decode())
    file = io.BytesIO()
    pil_image.save(file, format="PNG", pnginfo=chunks)
    return file.getvalue()


def metadata_for(image) -> dict[str, str]:
    """The text chunks {"parameters": ..., "simplear": ...} of a generated image.

    `image` offers prompt, negative_prompt, seed, height, width, guidance_scale, temperature, top_k, top_p, inexact,
    model and tokens [h, w].
    """
    steps = int(image.tokens.size)
    # A folder's place on this machine is nobody's business who gets the picture.
    model = Path(str(image.model)).name if Path(str(image.model)).is_absolute() else str(image.model)
    version = _version()
    fields = [
        ("Steps", str(steps)),
        ("Sampler", "greedy" if image.temperature == 0 else "autoregressive"),
        ("CFG scale", _number(image.guidance_scale)),
        ("Seed", str(int(image.seed))),
        ("Size", f"{int(image.width)}x{int(image.height)}"),
        ("Model", model),
        ("Temperature", _number(image.temperature)),
        ("Top-k", "off" if image.top_k is None else str(int(image.top_k))),
        ("Top-p", _number(image.top_p)),
        ("Version", version),
    ]
    if image.inexact:
        fields.insert(-1, ("Speculation", f"{image.inexact} (inexact)"))
    lines = [
        _one_line(image.prompt or ""),
        f"Negative prompt: {_one_line(image.negative_prompt or '')}",
        ", ".join(f"{name}: {_quoted(value)}" for name, value in fields),
    ]
    exact = {
        "prompt": image.prompt,
        "negative_prompt": image.negative_prompt,
        "seed": int(image.seed),
        "height": int(image.height),
        "width": int(image.width),
        "steps": steps,
        "guidance_scale": float(image.guidance_scale),
        "temperature": float(image.temperature),
        "top_k": None if image.top_k is None else int(image.top_k),
        "top_p": float(image.top_p),
        "model": model,
        "version": version,
    }
    if image.inexact:
        exact["inexact"] = image.inexact
    return {"parameters": "\n".join(lines), "simplear": json.dumps(exact)}


def contact_sheet(images: list, captions: list[str] | None = None):
    """One PIL image that shows all PIL `images` in a near-square grid, in reading order, each above its caption."""
    from PIL import Image, ImageDraw, ImageFont

    if not images:
        raise InvalidRequestError("a contact sheet needs at least one image")
    if captions is not None and len(captions) != len(images):
        raise InvalidRequestError(f"captions: expected {len(images)}, got {len(captions)}")
    cell_width = max(image.width for image in images)
    cell_height = max(image.height for image in images)
    gap = max(2, cell_width // 32)
    font_size = max(10, cell_width // 16)
    font = ImageFont.load_default(font_size)
    text_height = font_size * 3 // 2 if captions else 0
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    step_x, step_y = cell_width + gap, cell_height + text_height + gap
    sheet = Image.new("RGB", (gap + columns * step_x, gap + rows * step_y), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        x, y = gap + index % columns * step_x, gap + index // columns * step_y
        sheet.paste(image, (x + (cell_width - image.width) // 2, y))
        if captions:
            caption = _fitted(
                _one_line(captions[index][:200]), lambda text: draw.textlength(text, font=font), cell_width
            )
            draw.text((x, y + cell_height + font_size // 5), caption, fill="black", font=font)
    return sheet


def _fitted(text: str, length_of, width: int) -> str:
    if length_of(text) <= width:
        return text
    while text and length_of(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _one_line(text: str) -> str:
    return "".join(" " if unicodedata.category(char) in _LINE_BREAKING_CATEGORIES else char for char in text)


def _quoted(value: str) -> str:
    # Readers split this line at commas and colons, and take quoted values as JSON.
    return json.dumps(value, ensure_ascii=False) if any(char in value for char in ',:"\n') else _one_line(value)


def _number(value) -> str:
    return repr(float(value))


def _version() -> str:
    # Asking the installed package instead costs a tenth of a cold process's time.
    from simplear_engine import _C

    return _C.version
