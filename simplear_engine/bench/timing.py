"""Times of things that are measured in turns.

A shared machine drifts from minute to minute, so what is to be compared takes turns on it. A turn begins with a run
that does not count: it brings code, data and threads back to where a row of such runs would have them. Knows nothing of
what is run.
"""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Times:
    """Seconds of single runs, in ascending order."""

    seconds: tuple[float, ...]

    @staticmethod
    def of(seconds) -> "Times":
        return Times(tuple(sorted(seconds)))

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p10(self) -> float:
        return self.percentile(10)

    @property
    def p90(self) -> float:
        return self.percentile(90)

    def percentile(self, percent: float) -> float:
        """The nearest run; no value between two of them is made up."""
        return self.seconds[min(round(len(self.seconds) * percent / 100), len(self.seconds) - 1)]

    def fields(self, unit: str) -> dict[str, float]:
        """{unit, p10_unit, p90_unit}, in "s", "ms" or "us"."""
        scale = {"s": 1, "ms": 1e3, "us": 1e6}[unit]
        return {unit: self.median * scale, f"p10_{unit}": self.p10 * scale, f"p90_{unit}": self.p90 * scale}


def turn(
    run: Callable[[], object], seconds: float, min_runs: int = 1, before: Callable[[], object] = lambda: None
) -> list[float]:
    """Seconds of each run of one turn, which ends when `seconds` are spent and at least `min_runs` counted. Each comes
    after a call of `before`, which is not timed."""
    before()
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < min_runs or time.perf_counter() < end:
        before()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def in_turns(
    runs: Mapping[Hashable, Callable[[], object]],
    rounds: int,
    seconds: float,
    min_runs: int = 1,
    before: Mapping[Hashable, Callable[[], object]] = MappingProxyType({}),
) -> dict[Hashable, Times]:
    """Every run gets one turn in each round."""
    times: dict[Hashable, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            times[key] += turn(run, seconds, min_runs, before.get(key, lambda: None))
    return {key: Times.of(spent) for key, spent in times.items()}
