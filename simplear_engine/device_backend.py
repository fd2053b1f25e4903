"""As backend.py, for a GPU: device memory, weights in the layout of its kernels, steps as graphs.

On the simulated device of the tests ops run with the CPU's implementations by default; SIMPLEAR_OPS="linear=simt" takes
the CUDA kernel, run on the host. What the host has to do (reading files, packing weights) is done by the CPU's threads.
"""

import importlib.util

import numpy as np

from simplear_engine import _C
from simplear_engine.backend import DTYPES, GPU_DTYPES, GPU_KV_DTYPES, CpuBackend
from simplear_engine.errors import UnsupportedError
from simplear_engine.kernels import float8
from simplear_engine.kernels.op import GPU_IMPLS, all_ops
from simplear_engine.kernels.packed_weight import PackedWeight
from simplear_engine.kernels.weight_tiles import pack_tiles

# Steps that a device runs between two looks of the host: what a request may have to wait until it joins or leaves.
STEPS_PER_GROUP = 16
# Whether kernels may begin before the one before them has ended (programmatic dependent launch), and nanoseconds of idle
# time before each kernel, for tests of that.
OVERLAP = (True, 0)
# The size of a program whose calls are bound to no count.
NO_COUNTS = {"num_tokens": 0, "num_seqs": 0, "num_logit_rows": 0, "num_draws": 0, "num_windows": 0}


def _described(launch) -> tuple:
    """A triton_aot.DeviceLaunch as the device program takes it."""
    kernel = launch.kernel
    return kernel.cubin, kernel.name, launch.grid, launch.num_threads, kernel.shared_bytes, list(launch.arguments)


def _tensors_of(fields: dict) -> list[_C.Tensor]:
    return [value for value in fields.values() if isinstance(value, _C.Tensor)]


def has_triton(op: str) -> bool:
    """Whether an op has an implementation in Triton, and Triton is installed."""
    names = ("triton", f"simplear_engine.kernels.{op}.{op}_triton")
    return all(importlib.util.find_spec(name) is not None for name in names)


class DeviceBackend(CpuBackend):
    """A GPU, or the simulated device; `threads` is for what the host does: reading files, packing weights."""

    def __init__(self, device: _C.Device, threads: int | None = None):
        self._device = device
        self.device = device.name
        self.is_simulated = self.device.startswith("simulated")
        self.kv_dtypes = GPU_KV_DTYPES
        self.dtypes = tuple(dict.fromkeys((*DTYPES, *GPU_DTYPES))) if self.is_simulated else GPU_DTYPES
        self._buckets: list[dict] = []  # sizes of steps
        self._workspaces: list[_C.Tensor] = []  # of kernels that Triton compiled; the last one is the largest
        super().__init__(threads)

    def another(self) -> "DeviceBackend":
        """The same device for programs of another kind, with streams of its own and one thread of the host."""
        kind, _, index = self.device.partition(":")
        return DeviceBackend(_C.Device(kind, int(index or 0)), threads=1)

    @property
    def properties(self) -> dict:
        """Name, capability, memory and so on of the device."""
        return self._device.properties

    def known_implementations(self) -> dict[str, list[str]]:
        kernels = _C.cuda_op_impls()
        if not self.is_simulated:
            return {
                op: [*(impl for impl in kernels.get(op, []) if impl == "cuda"), *(["triton"] if has_triton(op) else [])]
                for op in all_ops()
            }
        on_host = super().known_implementations()
        return {
            op: [*impls, *(impl for impl in kernels.get(op, []) if impl == "simt")] for op, impls in on_host.items()
        }

    def implementation(self, op: str) -> str:
        return self._forced.get(op, self.isa if self.is_simulated else "cuda")

    def free_bytes(self) -> int:
        return self._device.free_memory

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

    def pack(self, op: str, parts, dtype: str, interleaved: bool) -> PackedWeight:
        packed = self._packed_on_host(op, parts, dtype, interleaved)
        return PackedWeight(self._device.upload(packed.storage), packed.shape)

    def pack_again(self, op: str, packed: PackedWeight, parts, interleaved: bool) -> None:
        again = self._packed_on_host(op, parts, packed.dtype, interleaved)
        self._device.copy(again.storage, packed.storage)

    def _packed_on_host(self, op: str, parts, dtype: str, interleaved: bool) -> PackedWeight:
        parts = [self._on_host(part) for part in parts]
        is_tiled = self.implementation(op) in GPU_IMPLS
        takes = GPU_DTYPES if is_tiled else DTYPES
        if dtype not in takes:
            raise UnsupportedError(
                f"dtype: {op} as {self.implementation(op)} takes {', '.join(takes[:-1])} or {takes[-1]}, got {dtype}"
            )
        if not is_tiled:
            return super().pack(op, parts, dtype, interleaved)
        # float8 has a scale for each row, which is chosen from all of its digits.
        matrices = [self._as_array(part, "float32" if dtype == float8.NAME else dtype) for part in parts]
        return pack_tiles(matrices if interleaved else [np.concatenate(matrices)], dtype)

    def _as_array(self, tensor: _C.Tensor, dtype: str) -> np.ndarray:
        """Its numbers as `dtype`."""
        if tensor.dtype != dtype:
            rounded = _C.Tensor.zeros(tensor.shape, dtype)
            _C.convert(tensor, rounded, self.pool)
            tensor = rounded
        return tensor.numpy()

    def _on_host(self, tensor: _C.Tensor) -> _C.Tensor:
        return tensor if tensor.device == "cpu" else self._device.download(tensor)

    def new_program(self):
        program = _C.DeviceProgram(self._device.driver, self.pool)
        program.set_overlap(*OVERLAP)
        return program

    def add(self, program, op: str, fields: dict, impl: str | None = None) -> None:
        impl = impl or self.implementation(op)
        if impl != "triton":
            program.add(op, impl, fields)
            return
        compiled = self._compiled(op, fields)
        program.add_compiled(compiled, [*_tensors_of(fields), *self._workspaces])

    def _compiled(self, op: str, fields: dict) -> list:
        """What Triton compiles of an op, for every size that a step may have."""
        from simplear_engine.triton_aot import device_launches

        major, minor = self.properties["capability"]
        sizes = []
        for bucket in reversed(self._buckets or [NO_COUNTS]):  # the largest first, so that the workspace seldom grows
            launches = device_launches(op, fields, bucket, 10 * major + minor, self._workspace_of)
            sizes.append((bucket, [_described(launch) for launch in launches]))
        return sizes

    def _workspace_of(self, num_bytes: int) -> int:
        """Address of so much memory, which all such ops use in turn."""
        if not self._workspaces or self._workspaces[-1].nbytes < num_bytes:
            self._workspaces.append(self.zeros([num_bytes], "uint8"))
        return self._workspaces[-1].address

    def step_plan(self, plan: _C.StepPlan) -> _C.StepPlan:
        self._buckets = _C.all_buckets(plan)
        return self._device.step_plan(plan)

    history_length = 2 * STEPS_PER_GROUP

    def runner(self, program, plan: _C.StepPlan, logits: _C.Tensor, history, visual_offset: int):
        runner = _C.GraphRunner(
            program=program, plan=plan, step=history.step, drawn_token=history.drawn_token,
            drawn_log_prob=history.drawn_log_prob, logits=logits, visual_offset=visual_offset,
        )  # fmt: skip
        runner.record_decoding(plan)
        return runner
