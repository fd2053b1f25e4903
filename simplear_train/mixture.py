"""Which samples of a source belong to a mixture, in SimpleAR's grammar.

"all", "first:N", "end:N", "random:N", where N is a number or a percentage of the source ("10%"); "repeat:N" stands for
the whole source N times.
"""

import numpy as np

from simplear_engine.errors import InvalidRequestError


def choose(strategy: str, count: int, seed: int) -> np.ndarray:
    """int64 sample numbers out of 0..count-1; random ones are the same for the same seed and count."""
    kind, _, amount = strategy.partition(":")
    every = np.arange(count)
    if kind == "all" and not amount:
        return every
    if kind not in ("first", "end", "random", "repeat"):
        raise InvalidRequestError(f"sampling: expected all, first:N, end:N, random:N or repeat:N, got {strategy!r}")
    if kind == "repeat" and amount.endswith("%"):
        raise InvalidRequestError(f"sampling: expected repeat:N, N a number of times, got {strategy!r}")
    number = _number(amount, count, strategy)
    if kind == "repeat":
        return np.tile(every, number)
    number = min(number, count)
    if kind == "random":
        return np.sort(np.random.default_rng((seed, count)).permutation(count)[:number])
    return every[:number] if kind == "first" else every[count - number :]


def _number(text: str, count: int, strategy: str) -> int:
    try:
        number = round(float(text[:-1]) / 100 * count) if text.endswith("%") else int(text)
    except (ValueError, OverflowError):
        raise InvalidRequestError(f"sampling: expected a number or a percentage in {strategy!r}") from None
    if number < 1:
        raise InvalidRequestError(f"sampling: {strategy!r} chooses nothing of {count} samples")
    return number
