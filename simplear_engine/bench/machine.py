"""What this machine can do at best, and what it is: the roofs that measurements are compared with.

Three of them: bytes a second of a plain read, FLOP a second of products of matrices (of many rows, or a convolution,
whichever is faster), and the microseconds in which all threads can begin and end together. Each is measured in the run
that quotes it.
"""

import dataclasses
import functools
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path

from simplear_engine import _C
from simplear_engine.backend import CpuBackend
from simplear_engine.bench.timing import Times, turn
from simplear_engine.doctor import cpu_model
from simplear_engine.errors import InternalError
from simplear_engine.kernels.op import Case, all_ops
from simplear_engine.testing.op_trial import Trial

READ_VALUES = 1 << 26  # int32 values of the yardstick read: more than any cache holds
GEMM_ROWS = 256  # as many rows as a long prefill: arithmetic decides
GEMM_WEIGHTS = 1 << 24  # at most, so that packing and checking take no time worth mentioning
CONVOLUTION_FLOPS = 1e9  # at least
TURN_SECONDS = 0.05
BARRIERS = 2000
# Taken now, because a benchmark is a load itself.
LOAD_BEFORE = round(os.getloadavg()[0], 2)


class Roofs:
    """Measures the roofs again and again, each a little, and keeps all that it saw."""

    def __init__(self, backend: CpuBackend):
        self._backend = backend
        case = Case({"N": READ_VALUES, "T": backend.pool.size})
        self._read_bytes = 4 * READ_VALUES
        self._read = checked(Trial(all_ops()["read_stream"], backend.implementation("read_stream"), case, backend.pool))
        self._gemm: dict[str, list[tuple[Trial, int]]] = {}
        self._seconds: dict[str, list[float]] = {}

    def measure(self, *dtypes: str) -> None:
        """One turn of the read and of the product in each dtype."""
        self._measure("read", self._read)
        for dtype in dtypes:
            if dtype not in self._gemm:
                self._gemm[dtype] = [self._product(name, case) for name, case in gemm_cases(dtype)]
            for trial, _ in self._gemm[dtype]:
                self._measure(f"{trial.op.name} {dtype}", trial)

    def _product(self, name: str, case: Case) -> tuple[Trial, int]:
        op = all_ops()[name]
        return checked(Trial(op, self._backend.implementation(name), case, self._backend.pool)), op.flops(case.axes)

    def _measure(self, name: str, trial: Trial) -> None:
        self._seconds.setdefault(name, []).extend(turn(trial.run, TURN_SECONDS))

    @property
    def read(self) -> float:
        """Bytes a second."""
        return self._read_bytes / Times.of(self._seconds["read"]).median

    def gemm(self, dtype: str) -> float | None:
        """FLOP a second; None where no op declares a product of this dtype to time."""
        paces = [
            flops / Times.of(self._seconds[f"{trial.op.name} {dtype}"]).median
            for trial, flops in self._gemm.get(dtype, [])
        ]
        return max(paces, default=None)

    def fields(self) -> dict:
        """{"read_gb_s", "gemm_gflop_s": {dtype: ...}}"""
        return {
            "read_gb_s": self.read / 1e9,
            "gemm_gflop_s": {dtype: self.gemm(dtype) / 1e9 for dtype, trials in self._gemm.items() if trials},
        }


def checked(trial: Trial) -> Trial:
    """The trial, if one run of it gives what the reference gives."""
    trial.run()
    try:
        trial.check()
    except AssertionError as error:
        raise InternalError(f"{trial.op.name} {trial.impl} {trial.case.id} is wrong: {one_line(error)}") from None
    return trial


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def gemm_cases(dtype: str) -> list[tuple[str, Case]]:
    """Of the timed cases with weights of this dtype, the largest of `linear`, with more rows, and that of `conv2d` with
    the fewest pixels, which takes little time."""
    found = []
    linear, conv2d = (
        [case for case in all_ops()[name].bench_cases if case.dtypes.get("weight") == dtype]
        for name in ("linear", "conv2d")
    )
    linear = [case for case in linear if case.axes["M"] * case.axes["K"] <= GEMM_WEIGHTS]
    if linear:
        case = max(linear, key=lambda case: case.axes["M"] * case.axes["K"])
        found.append(("linear", dataclasses.replace(case, axes={**case.axes, "N": GEMM_ROWS})))
    flops = all_ops()["conv2d"].flops
    conv2d = [case for case in conv2d if flops(case.axes) >= CONVOLUTION_FLOPS]
    if conv2d:
        found.append(("conv2d", min(conv2d, key=lambda case: case.axes["P"] * case.axes["Q"])))
    return found


def barrier(pool: _C.ThreadPool) -> Times:
    """Seconds of one call of all threads that does nothing, back to back as the ops of a step are."""
    pool.empty_calls(BARRIERS)
    return Times.of(pool.empty_calls(BARRIERS))


def describe(backend: CpuBackend) -> dict:
    """What a number needs beside it to be worth anything later."""
    return {
        "cpu": cpu_model(),
        "isa": backend.isa,
        "threads": backend.pool.size,
        "load_before": LOAD_BEFORE,
        "python": platform.python_version(),
        "engine": str(_C.version),
        "revision": revision(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_slug() -> str:
    return re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")[:60] or "unknown"


@functools.cache
def source_tree() -> Path | None:
    """The folder that this package is installed from in place; None elsewhere."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "benchmarks").is_dir() and (root / "csrc").is_dir() else None


def revision() -> str | None:
    """Of the source tree, with "-dirty" where it was changed since."""
    if source_tree() is None:
        return None
    command = ["git", "-C", str(source_tree()), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
