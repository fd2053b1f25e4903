"""Samples that could not be used: written down one by one, counted, and too many of them end the work.

A bad sample is never replaced by another one: the set simply has fewer.
"""

import json
from pathlib import Path

from .checkpoint import TrainingError


class Rejects:
    """Appends to `path`; TrainingError as soon as more than `limit` of the samples seen (at least 100) are bad."""

    def __init__(self, path: Path, limit: float):
        self.path, self.limit = path, limit
        self.num_seen, self.num_rejected = 0, 0

    def accept(self) -> None:
        self.num_seen += 1

    def reject(self, sample: str, error: Exception) -> None:
        self.num_seen += 1
        self.num_rejected += 1
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"sample": sample, "error": f"{type(error).__name__}: {error}"}) + "\n")
        self.check(self.num_seen >= 100)

    def check(self, is_enough: bool = True) -> None:
        if is_enough and self.num_rejected > self.limit * self.num_seen:
            raise TrainingError(
                f"{self.num_rejected} of {self.num_seen} samples could not be used, more than the share of {self.limit:g} "
                f"that was allowed; {self.path} lists them"
            )

    def __str__(self) -> str:
        where = f", listed in {self.path}" if self.num_rejected else ""
        return f"{self.num_seen - self.num_rejected} samples used, {self.num_rejected} rejected{where}"
