"""Where the engine computes: memory, packed weights, the implementation of each op, the runner of recorded steps.

The engine is written against what the two classes here have in common. The CPU backend takes the strongest instruction set of the processor for every op. SIMPLEAR_CPU_ISA forces another one
for all ops, SIMPLEAR_OPS="linear=avx2,head_sample=baseline" for single ops; a name that does not exist or that this
processor lacks is an error, never a silent fallback. The device backend records the same calls for a GPU, or for the
simulated device of the tests, which runs the CPU's implementations on memory of its own. Nothing here knows the network.
"""

import os
from dataclasses import dataclass

from simplear_engine import _C
from simplear_engine.errors import InvalidRequestError, UnsupportedError
from simplear_engine.kernels.op import all_ops
from simplear_engine.kernels.packed_weight import PackedWeight, pack, pack_again

# What weights may be kept in, and what activations on their way into a product and the KV cache then are.
DTYPES = ("float32", "bfloat16", "int8", "int4")
ACTIVATION_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "int8": "float32", "int4": "float32"}
CACHE_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "int8": "bfloat16", "int4": "bfloat16"}
KV_DTYPES = ("float32", "bfloat16", "int8")
MAX_THREADS = 1024
# Steps that a device runs between two looks of the host: what a request may have to wait until it joins or leaves.
STEPS_PER_GROUP = 16


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

    device = "cpu"

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

    @property
    def stream(self) -> int:
        raise UnsupportedError("streams: this engine computes on the CPU, where every call has ended when it returns")

    def resident(self, tensor: _C.Tensor) -> _C.Tensor:
        """`tensor` where ops can use it: itself, or a copy that `refresh` brings up to date."""
        return tensor

    def refresh(self, resident: _C.Tensor, tensor: _C.Tensor) -> None:
        """Copies `tensor`, which has changed, into its resident copy."""

    def convert(self, tensor: _C.Tensor, copy: _C.Tensor) -> None:
        """Fills `copy`, a float32 tensor of the host, with the numbers of `tensor`."""
        _C.convert(tensor, copy, self.pool)

    def pack(self, parts, dtype: str, interleaved: bool) -> PackedWeight:
        """A weight matrix of these parts, as `packed_weight.pack`."""
        return pack(parts, dtype, self.pool, interleaved)

    def pack_again(self, packed: PackedWeight, parts, interleaved: bool) -> None:
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

    def recorder(self, program) -> "Recorder":
        return Recorder(self, program)


class DeviceBackend(CpuBackend):
    """A GPU, or the simulated device; `threads` is for what the host does: reading files, packing weights."""

    def __init__(self, device: _C.Device, threads: int | None = None):
        super().__init__(threads)
        self._device = device
        self.device = device.name

    def zeros(self, shape, dtype: str) -> _C.Tensor:
        return self._device.zeros(list(shape), dtype)

    def upload(self, tensor: _C.Tensor) -> _C.Tensor:
        """A copy on the device of a tensor of the host."""
        return self._device.upload(tensor)

    def copy(self, source: _C.Tensor, target: _C.Tensor) -> None:
        """Copies between a tensor of the host and one of the device, and waits for it."""
        self._device.copy(source, target)

    def _borrowed(self, lender) -> _C.Tensor:
        return _C.Tensor.from_dlpack(lender, self._device.stream)

    def order(self, earlier: int, later: int) -> None:
        self._device.order(earlier, later)

    @property
    def stream(self) -> int:
        """Where copies to and from the device are ordered."""
        return self._device.stream

    def resident(self, tensor: _C.Tensor) -> _C.Tensor:
        return tensor if tensor.device == self.device else self._device.upload(tensor)

    def refresh(self, resident: _C.Tensor, tensor: _C.Tensor) -> None:
        if tensor.device != self.device:
            self._device.copy(tensor, resident)

    def convert(self, tensor: _C.Tensor, copy: _C.Tensor) -> None:
        super().convert(self._on_host(tensor), copy)

    def pack(self, parts, dtype: str, interleaved: bool) -> PackedWeight:
        packed = super().pack([self._on_host(part) for part in parts], dtype, interleaved)
        return PackedWeight(self._device.upload(packed.storage), packed.shape)

    def pack_again(self, packed: PackedWeight, parts, interleaved: bool) -> None:
        again = super().pack([self._on_host(part) for part in parts], packed.dtype, interleaved)
        self._device.copy(again.storage, packed.storage)

    def _on_host(self, tensor: _C.Tensor) -> _C.Tensor:
        return tensor if tensor.device == "cpu" else self._device.download(tensor)

    def new_program(self):
        return _C.DeviceProgram(self._device.driver, self.pool)

    def step_plan(self, plan: _C.StepPlan) -> _C.StepPlan:
        return self._device.step_plan(plan)

    history_length = 2 * STEPS_PER_GROUP

    def runner(self, program, plan: _C.StepPlan, logits: _C.Tensor, history, visual_offset: int):
        runner = _C.GraphRunner(
            program=program, plan=plan, step=history.step, drawn_token=history.drawn_token,
            drawn_log_prob=history.drawn_log_prob, logits=logits, visual_offset=visual_offset,
        )  # fmt: skip
        runner.record_decoding(plan)
        return runner


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
