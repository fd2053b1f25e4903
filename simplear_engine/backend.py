"""Where the engine computes: memory, packed weights, the implementation of each op, the runner of recorded steps.

The CPU backend takes the strongest instruction set of the processor for every op. SIMPLEAR_CPU_ISA forces another one for
all ops, SIMPLEAR_OPS="linear=avx2,head_sample=baseline" for single ops; a name that does not exist or that this processor
lacks is an error, never a silent fallback. device_backend.py has the same for a GPU. Nothing here knows the network.
"""

import os
from dataclasses import dataclass

from simplear_engine import _C
from simplear_engine.errors import InvalidRequestError, UnsupportedError, shown
from simplear_engine.kernels import float8
from simplear_engine.kernels.op import all_ops
from simplear_engine.kernels.packed_weight import PackedWeight, pack, pack_again

# What weights may be kept in on a CPU, and what activations on their way into a product and the KV cache then are.
DTYPES = ("float32", "bfloat16", "int8", "int4")
GPU_DTYPES = ("float32", "bfloat16", float8.NAME)
ACTIVATION_DTYPES = {
    "float32": "float32", "bfloat16": "bfloat16", "int8": "float32", "int4": "float32", float8.NAME: "bfloat16",
}  # fmt: skip
CACHE_DTYPES = {
    "float32": "float32", "bfloat16": "bfloat16", "int8": "bfloat16", "int4": "bfloat16", float8.NAME: "bfloat16",
}  # fmt: skip
KV_DTYPES = ("float32", "bfloat16", "int8")
GPU_KV_DTYPES = (*KV_DTYPES, float8.NAME)
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


def new_pool(threads: int | None) -> _C.ThreadPool:
    """So many worker threads; None: as many as there are physical cores that this process may use."""
    if threads is None:
        threads = _C.default_num_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise InvalidRequestError(f"threads: expected an integer in 1..{MAX_THREADS}, got {shown(threads)}")
    return _C.ThreadPool(threads)


class CpuBackend:
    """Threads and the choice of kernels on this processor."""

    device = "cpu"
    dtypes: tuple[str, ...] = DTYPES
    kv_dtypes: tuple[str, ...] = KV_DTYPES

    def __init__(self, threads: int | None = None):
        """threads: None takes the physical cores that this process may use."""
        self.pool = new_pool(threads)
        self.isa = _C.chosen_isa()
        self._forced = forced_implementations(self.known_implementations())

    def known_implementations(self) -> dict[str, list[str]]:
        """What each op can run with here."""
        here = _C.available_isas()
        return {op: [impl for impl in impls if impl in here] for op, impls in _C.op_impls().items()}

    def implementation(self, op: str) -> str:
        """Name of the implementation that `op` runs with."""
        return self._forced.get(op, self.isa)

    def free_bytes(self) -> int | None:
        """Memory that is left on the device; None on the host."""
        return None

    def zeros(self, shape, dtype: str) -> _C.Tensor:
        """A new tensor where ops can use it."""
        return _C.Tensor.zeros(list(shape), dtype)

    def borrow(self, lender) -> _C.Tensor:
        """The memory of a tensor with DLPack, on the host or on this backend's device."""
        tensor = self._borrowed(lender)
        if tensor.device not in ("cpu", self.device):
            expected = " or ".join(dict.fromkeys(("cpu", self.device)))
            raise InvalidRequestError(f"expected a tensor on {expected}, got one on {tensor.device}")
        return tensor

    def _borrowed(self, lender) -> _C.Tensor:
        return _C.Tensor.from_dlpack(lender)

    # Where copies to and from the device are ordered; the host has no such thing.
    stream = None

    def resident(self, tensor: _C.Tensor) -> _C.Tensor:
        """`tensor` where ops can use it: itself, or a copy that `refresh` brings up to date."""
        return tensor

    def refresh(self, resident: _C.Tensor, tensor: _C.Tensor) -> None:
        """Copies `tensor`, which has changed, into its resident copy."""

    def convert(self, tensor: _C.Tensor, copy: _C.Tensor) -> None:
        """Fills `copy`, a float32 tensor of the host, with the numbers of `tensor`."""
        _C.convert(tensor, copy, self.pool)

    def pack(self, op: str, parts, dtype: str, interleaved: bool) -> PackedWeight:
        """The rows of `parts` as one matrix, packed for `op`: one part after the other or by turns."""
        return pack(parts, dtype, self.pool, interleaved)

    def pack_again(self, op: str, packed: PackedWeight, parts, interleaved: bool) -> None:
        """Packs changed `parts` in place."""
        pack_again(packed, parts, self.pool, interleaved)

    def new_program(self):
        return _C.Program()

    def step_plan(self, plan: _C.StepPlan) -> _C.StepPlan:
        """The plan that ops read, for the one that the scheduler fills."""
        return plan

    history_length = 0  # steps whose draws the ops have to keep for the runner

    def runner(self, program, plan: _C.StepPlan, logits: _C.Tensor, history, visual_offset: int):
        """What runs a recorded step; plan and logits as the ops have them."""
        return _C.CpuRunner(program=program, pool=self.pool, logits=logits)

    def add(self, program, op: str, fields: dict) -> None:
        """Appends a call to a program; fields: those of the op's struct (`Op.fields`)."""
        program.add(op, self.implementation(op), fields)

    def recorder(self, program) -> "Recorder":
        return Recorder(self, program)


class Recorder:
    """A table of ops that does not compute: each call is appended to a program.

    recorder.linear(x=..., weight=..., y=..., accumulate=1): tensors and scalars by the names of the op's declaration.
    """

    def __init__(self, backend: CpuBackend, program):
        self._backend, self._program, self._ops = backend, program, all_ops()

    def __getattr__(self, name: str):
        op = self._ops.get(name)
        if op is None:
            raise AttributeError(f"no op named {name}")

        def call(**arguments) -> None:
            tensors = {key: value for key, value in arguments.items() if key in op.args}
            scalars = {key: value for key, value in arguments.items() if key not in op.args}
            fields = op.fields(tensors, scalars, self._backend.implementation(name))
            self._backend.add(self._program, name, fields)

        return call


# Ops of a step. Those of the picture decoder are no business of SIMPLEAR_OPS.
STEP_OPS = ("embed", "linear", "rope_append", "paged_attention", "gate_up_silu", "head_sample", "verify_drafts")


def forced_implementations(known: dict[str, list[str]]) -> dict[str, str]:
    """What SIMPLEAR_OPS chooses, {op: implementation}, of what is known."""
    known = {op: known[op] for op in STEP_OPS if op in known}
    forced = {}
    for choice in filter(None, os.environ.get("SIMPLEAR_OPS", "").split(",")):
        op, equals, impl = (part.strip() for part in choice.partition("="))
        if not equals or op not in known:
            raise UnsupportedError(
                f"SIMPLEAR_OPS={choice}: expected op=implementation with op one of {', '.join(sorted(known))}"
            )
        if impl not in known[op]:
            raise UnsupportedError(f"SIMPLEAR_OPS={choice}: here {op} runs with {', '.join(known[op]) or 'nothing'}")
        forced[op] = impl
    return forced
