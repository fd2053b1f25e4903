"""Whether the things that a prompt names are found by an object detector of transformers.

    [[rewards]]
    name = "detector"
    options = { folder = "weights/detr-resnet-50" }

A prompt's things are the detector's class names that occur in it, with a number word or an article before them ("two
dogs and a car"). The score is the mean over the things of how near the number found is to the number asked: 1 for
equal, down to 0. A prompt without a known thing has no answer (NaN). Colours and places are not judged.
"""

import re
from pathlib import Path

import numpy as np

from simplear_engine.errors import CheckpointError

from .packages import need

NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}


def plural(noun: str) -> str:
    if noun.endswith(("s", "sh", "ch", "x")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else noun + "s"


def wanted_counts(prompt: str, nouns: list[str]) -> dict[str, int]:
    """{"dog": 2, "car": 1} for "two dogs and a red car"; a noun without a number counts as one."""
    text, found, numbers = prompt.lower(), {}, "|".join(NUMBERS)
    for noun in sorted(nouns, key=len, reverse=True):  # "hot dog" before "dog"
        pattern = re.compile(
            rf"(?:\b({numbers})\s+(?:(?!(?:{numbers}|and|or|with)\b)\w+\s+){{0,3}}?)?\b(?:{re.escape(noun)}|{re.escape(plural(noun))})\b"
        )
        match = pattern.search(text)
        if match:
            found[noun] = NUMBERS.get(match[1], 1)
            text = text[: match.start()] + " , " + text[match.end() :]
    return found


def count_score(wanted: dict[str, int], seen: dict[str, int]) -> float:
    nearness = [max(0.0, 1 - abs(seen.get(noun, 0) - count) / count) for noun, count in wanted.items()]
    return float(np.mean(nearness)) if nearness else float("nan")


class DetectorReward:
    def __init__(self, folder: str, confidence: float = 0.5, device: str = "cpu"):
        self.torch, transformers = need("torch", "detector"), need("transformers", "detector")
        if not Path(folder).is_dir():
            raise CheckpointError(f"{folder}: expected a folder with a detector in transformers' layout")
        try:
            self.model = transformers.AutoModelForObjectDetection.from_pretrained(folder, local_files_only=True)
            self.processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: transformers reads no detector from it: {error}") from error
        self.model.to(device).eval().requires_grad_(False)
        self.nouns = [name.lower() for name in self.model.config.id2label.values()]
        self.confidence, self.device = confidence, device

    def score(self, prompts: list[str], images: np.ndarray) -> np.ndarray:
        scores = np.empty(len(prompts), np.float32)
        for i, (prompt, image) in enumerate(zip(prompts, images)):
            inputs = self.processor(images=image, return_tensors="pt").to(self.device)
            with self.torch.no_grad():
                outputs = self.model(**inputs)
            (found,) = self.processor.post_process_object_detection(
                outputs, threshold=self.confidence, target_sizes=[image.shape[:2]]
            )
            seen: dict[str, int] = {}
            for label in found["labels"].tolist():
                name = self.model.config.id2label[label].lower()
                seen[name] = seen.get(name, 0) + 1
            scores[i] = count_score(wanted_counts(prompt, self.nouns), seen)
        return scores
