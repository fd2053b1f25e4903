"""What a request returns: codes and log-probabilities at once, pixels when somebody looks."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(eq=False, repr=False)
class GeneratedImage:
    """One image.

    tokens: int32 [h, w] code indices, row by row from the top left. log_probs: float32 [h, w], natural log of each
    code's probability under the distribution that it was drawn from (guided, tempered, filtered; 0 when greedy).
    timings: seconds spent waiting ("queue"), on the prompt ("prefill"), on the codes ("decode"), and, once they were
    made, on the pixels ("pixels"). num_steps: forward steps that the image took. accepted_lens: int32, codes that each
    sampling step yielded; all ones without speculation. draft_counts: two int64 arrays by place in the draft window, how many
    drafts were verified there and how many of those were kept; empty without speculation. inexact: the mode of speculation
    that the picture depends on, None where it depends on none; log_probs are NaN where such a mode kept another code
    than the one drawn.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    seed: int
    prompt: str | None
    negative_prompt: str | None
    guidance_scale: float
    temperature: float
    top_k: int | None
    top_p: float
    height: int
    width: int
    model: str
    _timings: dict[str, float]
    num_steps: int
    accepted_lens: np.ndarray
    draft_counts: tuple[np.ndarray, np.ndarray]
    inexact: str | None
    _pixels: Callable[[], np.ndarray]
    _pil: Any = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __repr__(self) -> str:
        return (
            f"<GeneratedImage {self.prompt!r}, seed {self.seed}: {self.width} x {self.height} pixels, {self.tokens.size} codes "
            f"in {self.num_steps} steps>"
        )

    @property
    def timings(self) -> dict[str, float]:
        return dict(self._timings)

    @property
    def pixels(self) -> np.ndarray:
        """float32 [3, H, W], nominally in [-1, 1], not clamped. UnsupportedError when the checkpoint has no decoder,
        NumericalError where that one overflows."""
        return self._pixels()

    @property
    def pil(self):
        """The picture as a PIL image."""
        with self._lock:
            if self._pil is None:
                from PIL import Image

                self._pil = Image.fromarray(to_uint8(self.pixels))
            return self._pil

    def save(self, path) -> None:
        """Writes a PNG that says how it was made; see simplear_engine.png."""
        from simplear_engine.png import metadata_for, save_png

        save_png(self.pil, path, metadata_for(self))

    def png(self) -> bytes:
        """What `save` writes."""
        from simplear_engine.png import metadata_for, png_bytes

        return png_bytes(self.pil, metadata_for(self))


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """float32 [3, H, W] in [-1, 1] -> uint8 [H, W, 3], clamped, rounded half up, computed in float32."""
    scaled = np.clip((pixels + np.float32(1)) / np.float32(2), 0, 1) * np.float32(255) + np.float32(0.5)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(1, 2, 0))
