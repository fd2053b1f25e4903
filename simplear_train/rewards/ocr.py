"""Whether a picture carries the text that its prompt quotes: a sign that says "OPEN".

    [[rewards]]
    name = "ocr"

The quoted words are compared with what OCR reads, letter by letter: 1 for the same text, 0 for nothing in common. A
prompt without a quotation has no answer (NaN): it leaves its picture out instead of judging it by something else.
Uses rapidocr_onnxruntime, which carries its own networks.
"""

import re

import numpy as np

from .packages import need

_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|(?<!\w)\'([^\']+)\'(?!\w)')


def quoted(prompt: str) -> str | None:
    found = _QUOTED.search(prompt)
    return next(group for group in found.groups() if group) if found else None


def likeness(wanted: str, read: str) -> float:
    """1 - edit distance / length of the wanted text, at least 0; case and spaces do not matter."""
    a, b = ("".join(text.lower().split()) for text in (wanted, read))
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
        previous = row
    return max(0.0, 1 - previous[-1] / max(len(a), 1))


class OcrReward:
    def __init__(self):
        self.read = need("rapidocr_onnxruntime", "ocr").RapidOCR()

    def score(self, prompts: list[str], images: np.ndarray) -> np.ndarray:
        scores = np.full(len(prompts), np.nan, np.float32)
        for i, (prompt, image) in enumerate(zip(prompts, images)):
            wanted = quoted(prompt)
            if wanted is not None:
                lines, _ = self.read(np.ascontiguousarray(image[..., ::-1]))  # it expects BGR
                scores[i] = likeness(wanted, " ".join(line[1] for line in lines or ()))
        return scores
