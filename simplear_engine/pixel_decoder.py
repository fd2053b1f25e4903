"""Codes to pixels on a worker of its own, while the engine thread draws other images.

The worker begins by building the decoder: the first picture's codes take longer to draw than that.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from simplear_engine.errors import CancelledError


class PixelDecoder:
    """Owns one worker thread; `image_tokenizer` has config, prepare() and decode(int [1, h, w]) -> float32 [1, 3, H, W]."""

    def __init__(self, image_tokenizer):
        self._tokenizer = image_tokenizer
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="simplear-pixels")
        # Its error, if any, is that of the first decode, which then builds anew.
        self._worker.submit(image_tokenizer.prepare)

    @property
    def levels(self) -> tuple[int, ...]:
        """Digits of a code, by coordinate."""
        return self._tokenizer.config.levels

    def start(self, tokens: np.ndarray, timings: dict[str, float]) -> Future:
        """Begins decoding int32 [h, w]; the future yields float32 [3, H, W] and the seconds go to timings["pixels"].
        CancelledError where the worker has ended."""

        def decode() -> np.ndarray:
            started = time.perf_counter()
            pixels = self._tokenizer.decode(tokens[None])[0]
            timings["pixels"] = time.perf_counter() - started
            return pixels

        try:
            return self._worker.submit(decode)
        except RuntimeError:
            raise CancelledError("the engine was closed") from None

    def close(self) -> None:
        """Ends the worker when it has done what was begun: whoever holds a picture may ask for its pixels later."""
        self._worker.shutdown(wait=True)
