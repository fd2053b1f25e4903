"""An engine whose recorded step is run by hand, so that any number of rows and any context can be timed.

It is the engine that users get: same weights, same recording, same plan. Its own thread is paused while steps are run
here. Its cache is filled with numbers first: memory that was never written costs nothing to read. What a step must read
and compute is counted off the engine's own tensors.
"""

import dataclasses
import math

import numpy as np

from simplear_engine import Engine, _C
from simplear_engine.bench import shapes
from simplear_engine.bench.shapes import Shape
from simplear_engine.dtypes import FLOATING, STORAGE, from_float32
from simplear_engine.errors import CapacityError, InternalError, InvalidRequestError
from simplear_engine.forward import cache_block_bytes

GREEDY_PROMPT = tuple(range(1000, 1030))
GREEDY_GRID = 4  # the greedy picture has this many codes a side
MIN_BLOCKS = 64  # room for that picture


class StepRig:
    """Steps of the shapes in `wanted` with the checkpoint in `folder`; close() it."""

    def __init__(self, folder, dtype: str, wanted: list[Shape], threads: int | None):
        from simplear_engine.checkpoint import load_checkpoint

        model = load_checkpoint(folder).model
        for shape in wanted:
            if shape.context_lens[0] > model.max_position_embeddings:
                raise InvalidRequestError(
                    f"context: {shape.context} with a window of {shape.window} is longer than the model's "
                    f"{model.max_position_embeddings} positions"
                )
        num_blocks = max(shape.num_blocks for shape in wanted)
        # Asked for as if keys and values were float32; blocks that no step touches never take memory.
        self.engine = Engine.from_pretrained(
            folder, device="cpu", dtype=dtype, threads=threads, max_pairs=max(shape.num_pairs for shape in wanted),
            kv_cache_bytes=max(num_blocks, MIN_BLOCKS) * cache_block_bytes(model, "float32"),
        )  # fmt: skip
        self.model, self.dtype, self.backend = self.engine.model, dtype, self.engine._backend
        self._current: Shape | None = None

    def close(self) -> None:
        self.engine.close()

    def check_greedy(self) -> None:
        """Greedy codes must be what teacher-forced scoring, which computes all positions in chunks, prefers."""
        ids = [i % self.model.visual_offset for i in GREEDY_PROMPT]
        side = GREEDY_GRID * self.engine._compression
        (image,) = self.engine.generate_from_ids(ids, height=side, width=side, temperature=0, guidance_scale=1)
        scored = self.engine.score_from_ids(ids, image.tokens).argmax(axis=1).reshape(image.tokens.shape)
        if not np.array_equal(image.tokens, scored):
            raise InternalError(f"step {self.dtype}: teacher-forced scoring does not give the greedy codes")

    def take_over(self, wanted: list[Shape]) -> None:
        """From now on the engine serves no requests, and its cache holds numbers instead of their keys and values."""
        self._pause = self.engine._core.pause(weights_change=False)
        _fill_cache(self.engine._cache, max(shape.num_blocks for shape in wanted))

    def run(self, shape: Shape) -> None:
        """One step; the plan is written when the shape is another than last time."""
        if self._current != shape:
            shapes.fill(self.engine._plan, shape, self.model)
            self._current = shape
        self.engine._program.run(self.engine._plan, self.backend.pool)

    def check_rows(self, shape: Shape) -> None:
        """Rows must have the same logits alone, and pairs the same draws, bit for bit: the first, middle and last."""
        together = self.logits(shape)
        if not np.isfinite(together).all():
            raise InternalError(f"{self._named(shape)}: logits are not finite")
        for row in sorted({0, shape.rows // 2, shape.rows - 1}):
            if not np.array_equal(self.logits(shape, row)[0], together[row]):
                raise InternalError(f"{self._named(shape)}: row {row} alone has other logits than in the batch")
        draws = self.draws(shape)
        for pair in sorted({0, shape.num_pairs // 2, shape.num_pairs - 1}):
            alone, mine = self.draws(shape, pair), slice(pair * shape.window, (pair + 1) * shape.window)
            if not all(np.array_equal(a, b[mine]) for a, b in zip(alone, draws, strict=True)):
                raise InternalError(f"{self._named(shape)}: pair {pair} alone draws other codes than in the batch")

    def logits(self, shape: Shape, row: int | None = None) -> np.ndarray:
        """float32 [rows, codes] of the step's rows, or of one of them alone."""
        self._current = None
        logits = self.engine._activations.logits.storage.numpy()
        logits[: shape.rows] = np.nan  # what a step leaves out must not pass for its result
        shapes.fill_scoring(self.engine._plan, shape, self.model, row)
        self.engine._program.run(self.engine._plan, self.backend.pool)
        return logits[: shape.rows if row is None else 1].copy()

    def draws(self, shape: Shape, pair: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(codes, log-probabilities) that the step draws, or one of its pairs alone."""
        self._current = None
        plan = self.engine._plan
        shapes.fill(plan, shape, self.model, None if pair is None else [pair])
        self.engine._program.run(plan, self.backend.pool)
        return tuple(tensor.numpy()[: plan.num_draws].copy() for tensor in (plan.token, plan.log_prob))

    def seconds_by_op(self, shape: Shape, runs: int) -> dict[str, float]:
        """Seconds that a step spends in each op, the longest first."""
        self.run(shape)
        self.engine._program.set_timing(True)
        for _ in range(runs):
            self.run(shape)
        spent: dict[str, float] = {}
        for op, seconds in self.engine._program.timings():
            spent[op] = spent.get(op, 0) + seconds / runs
        self.engine._program.set_timing(False)
        return dict(sorted(spent.items(), key=lambda item: -item[1]))

    def bytes_read(self, shape: Shape) -> tuple[int, int]:
        """(weights, keys and values) that a step of this shape must read once; a row of the embedding a token apart."""
        return nbytes(self._streamed()), sum(shape.context_lens) * self._bytes_per_key()

    def flops(self, shape: Shape) -> int:
        """Of the matrix products, attention's included."""
        products = 2 * shape.rows * sum(math.prod(matrix.shape) for matrix in matrices(self._streamed()))
        m = self.model
        return products + 4 * shape.num_keys_of_rows * m.num_layers * m.num_heads * m.head_dim

    def _streamed(self) -> list:
        weights = vars(self.engine._weights).items()
        return [value for name, value in weights if not name.startswith("_") and name != "embedding"]

    def _bytes_per_key(self) -> int:
        num_blocks = next(cache_tensors(self.engine._cache)).shape[0]
        return sum(tensor.nbytes for tensor in cache_tensors(self.engine._cache)) // (num_blocks * shapes.BLOCK_SIZE)

    def _named(self, shape: Shape) -> str:
        return f"step {self.dtype}, {shape.rows} rows, context {shape.context}, window {shape.window}"


def _parts(value):
    """The tensors and packed matrices that a piece of the weights consists of."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, _C.Tensor) or hasattr(value, "storage"):
        yield value
    elif dataclasses.is_dataclass(value):
        yield from _parts([getattr(value, field.name) for field in dataclasses.fields(value)])


def nbytes(value) -> int:
    """Bytes of all tensors in a piece of the weights, as they lie in memory."""
    return sum(getattr(part, "storage", part).nbytes for part in _parts(value))


def matrices(value) -> list:
    """The packed matrices in a piece of the weights; their .shape is the logical one."""
    return [part for part in _parts(value) if hasattr(part, "storage")]


def cache_tensors(cache):
    for layer in cache:
        for field in dataclasses.fields(layer):
            # Only quantised keys and values have scales.
            if (tensor := getattr(layer, field.name)) is not None:
                yield tensor


def _fill_cache(cache, num_blocks: int) -> None:
    """Numbers of the size that keys and values have; the same few blocks again and again, at their own addresses."""
    needed = sum(tensor.nbytes // tensor.shape[0] for tensor in cache_tensors(cache)) * num_blocks
    if needed > (available := available_memory()):
        raise CapacityError(
            f"these contexts need {needed / 1e9:.1f} GB of keys and values, {available / 1e9:.1f} GB of memory are "
            f"free: time fewer rows, a shorter context or one dtype at a time"
        )
    rng = np.random.default_rng(0)
    for tensor in cache_tensors(cache):
        array = tensor.numpy()
        some = rng.standard_normal((min(8, len(array)), *array.shape[1:]), dtype=np.float32)
        if tensor.dtype in FLOATING:
            some = from_float32(some, tensor.dtype)
        else:
            some = np.clip(some * 32, -127, 127).astype(STORAGE[tensor.dtype])
        for begin in range(0, num_blocks, len(some)):
            array[begin : min(begin + len(some), num_blocks)] = some[: num_blocks - begin]


def available_memory() -> int:
    try:
        with open("/proc/meminfo") as file:
            (line,) = (line for line in file if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return 1 << 62
