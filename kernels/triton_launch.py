"""How an op is implemented in Triton: as launches, which are data.

kernels/<op>/<op>_triton.py has a function launches(p, scratch): from the fields of the op's C struct it makes the kernel
launches that carry the op out, in order. Nothing is started by that: a TritonProgram runs launches from Python, and
triton_aot compiles them for engines that have no Python in their loop.

    p        the struct's fields as attributes: tensors (None: an optional one is absent), sizes, scalars
    scratch  scratch(shape, dtype) -> a tensor whose contents need not outlive the op

What belongs to the model is a constant of the kernel (hidden_size, eps), what belongs to the step is an argument
(num_rows), so that a kernel is compiled once for a model and a tile of rows. A row's arithmetic may depend on constants
and on its own position only: tiles along a sum are of fixed size, and sums across a tile whose shape depends on the number
of rows are left to the tensor cores, which add each output in the same order whatever its neighbours are (contract C2).

Nothing here imports Triton, and no kernel may fuse a multiplication with an addition unless it says so.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simplear_engine.errors import UnsupportedError

# What a compiler may do to every kernel of ours: contraction would change the bits of the noise.
OPTIONS = {"enable_fp_fusion": False}
# Shared memory that a block may use on the smallest target (sm_80: 163 KB), less what reductions need.
SHARED_BYTES = 144 * 1024


@dataclass(frozen=True)
class Launch:
    """One kernel launch: `args` are tensors, integers and floats by the names of the kernel's parameters, `constants` those
    that are tl.constexpr. An argument that is None is absent: the kernel is compiled without it."""

    kernel: Any
    grid: tuple[int, ...]
    args: Mapping[str, Any]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2


Scratch = Callable[[tuple[int, ...], str], Any]
Launches = Callable[[Any, Scratch], Iterable[Launch]]


@functools.cache
def launches_of(op: str) -> Launches:
    """The Triton implementation of an op; UnsupportedError when it has none, or when Triton is not installed."""
    if not has_implementation(op):
        raise UnsupportedError(f"{op} has no Triton implementation: there is no kernels/{op}/{op}_triton.py")
    try:
        return importlib.import_module(f"simplear_engine.kernels.{op}.{op}_triton").launches
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise UnsupportedError(
            f"{op}: the Triton implementation needs the package triton, which is not installed"
        ) from None


def has_implementation(op: str) -> bool:
    return (Path(__file__).parent / op / f"{op}_triton.py").is_file()


def fields(p: Any, *names: str) -> dict[str, Any]:
    """Some of the struct's fields, for kernels whose parameters have the same names."""
    return {name: getattr(p, name) for name in names}


def tiles(size: int, tile: int) -> int:
    return -(-size // tile)


def power_of_2(size: int) -> int:
    """The smallest power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()


def stages(bytes_of_a_stage: int, most: int = 4) -> int:
    """How many steps of a loop over tiles fit into shared memory at once."""
    return max(1, min(most, SHARED_BYTES // bytes_of_a_stage))
