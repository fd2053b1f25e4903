"""Which implementation of each op is used, and how the forward pass is recorded with it.

The CPU backend takes the strongest instruction set of the processor for every op. SIMPLEAR_CPU_ISA forces another one
for all ops, SIMPLEAR_OPS="linear=avx2,head_sample=baseline" for single ops; a name that does not exist or that this
processor lacks is an error, never a silent fallback. Nothing here knows the network.
"""

import os
from dataclasses import dataclass

from simplear_engine import _C
from simplear_engine.errors import InvalidRequestError, UnsupportedError
from simplear_engine.kernels.op import all_ops

# What weights may be kept in, and what activations on their way into a product and the KV cache then are.
DTYPES = ("float32", "bfloat16", "int8", "int4")
ACTIVATION_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "int8": "float32", "int4": "float32"}
CACHE_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "int8": "bfloat16", "int4": "bfloat16"}
KV_DTYPES = ("float32", "bfloat16", "int8")
MAX_THREADS = 1024


@dataclass(frozen=True)
class Rows:
    """A buffer of which the first rows are in use: how many is the step plan's count of this name."""

    storage: _C.Tensor
    count: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.storage.shape

    @property
    def dtype(self) -> str:
        return self.storage.dtype

    @property
    def counts(self) -> dict[int, str]:
        return {0: self.count}


class CpuBackend:
    """Threads and the choice of kernels on this processor."""

    def __init__(self, threads: int | None = None):
        """threads: None takes the physical cores that this process may use."""
        if threads is None:
            threads = _C.default_num_threads()
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
            raise InvalidRequestError(f"threads: expected an integer in 1..{MAX_THREADS}, got {threads!r}")
        self.pool = _C.ThreadPool(threads)
        self.isa = _C.chosen_isa()
        self._forced = _forced_implementations()

    def implementation(self, op: str) -> str:
        """Name of the implementation that `op` runs with."""
        return self._forced.get(op, self.isa)

    def recorder(self, program: _C.Program) -> "Recorder":
        return Recorder(self, program)


class Recorder:
    """A table of ops that does not compute: each call is appended to a program.

    recorder.linear(x=..., weight=..., y=..., accumulate=1): tensors and scalars by the names of the op's declaration.
    """

    def __init__(self, backend: CpuBackend, program: _C.Program):
        self._backend, self._program, self._ops = backend, program, all_ops()

    def __getattr__(self, name: str):
        op = self._ops.get(name)
        if op is None:
            raise AttributeError(f"no op named {name}")

        def call(**arguments) -> None:
            tensors = {key: value for key, value in arguments.items() if key in op.args}
            scalars = {key: value for key, value in arguments.items() if key not in op.args}
            op.record(self._program, self._backend.implementation(name), tensors, **scalars)

        return call


def _forced_implementations() -> dict[str, str]:
    forced = {}
    known = _C.op_impls()
    for choice in filter(None, os.environ.get("SIMPLEAR_OPS", "").split(",")):
        op, equals, impl = (part.strip() for part in choice.partition("="))
        if not equals or op not in known:
            raise UnsupportedError(
                f"SIMPLEAR_OPS={choice}: expected op=implementation with op one of {', '.join(sorted(known))}"
            )
        if impl not in known[op] or impl not in _C.available_isas():
            raise UnsupportedError(f"SIMPLEAR_OPS={choice}: {op} has {', '.join(known[op])}; this processor runs "
                                   f"{', '.join(_C.available_isas())}")  # fmt: skip
        forced[op] = impl
    return forced
