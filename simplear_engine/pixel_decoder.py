"""Codes to pixels on a worker of its own, while the engine thread draws other images.

The worker begins by building the decoder: the first picture's codes take longer to draw than that.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from simplear_engine.errors import CancelledError


@dataclass(eq=False)
class Decoding:
    """One picture's pixels on their way: `result()` waits for float32 [3, H, W] and raises what the decoder raised.

    `pixels` is None until they are made. A forked child looks there first: it has no worker to wait for, and a Future's lock
    may have been held by one while the process was copied.
    """

    pixels: np.ndarray | None = None
    _future: Future | None = None

    def result(self) -> np.ndarray:
        return self._future.result() if self.pixels is None else self.pixels


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

    def start(self, tokens: np.ndarray, timings: dict[str, float]) -> Decoding:
        """Begins decoding int32 [h, w]; the seconds that it takes go to timings["pixels"]. CancelledError where the
        worker has ended."""
        decoding = Decoding()

        def decode() -> np.ndarray:
            started = time.perf_counter()
            pixels = self._tokenizer.decode(tokens[None])[0]
            timings["pixels"] = time.perf_counter() - started
            decoding.pixels = pixels
            return pixels

        try:
            decoding._future = self._worker.submit(decode)
        except RuntimeError:
            raise CancelledError("the engine was closed") from None
        return decoding

    def close(self) -> None:
        """Ends the worker when it has done what was begun: whoever holds a picture may ask for its pixels later."""
        self._worker.shutdown(wait=True)
