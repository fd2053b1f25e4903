"""What computes: packs weights and prepares a network for a size. The C++ kernels, Triton with torch or by the engine's own
driver, or NumPy as the reference."""

import importlib.util
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from simplear_engine import _C
from simplear_engine.backend import new_pool
from simplear_engine.errors import UnsupportedError
from simplear_engine.image import fsq
from simplear_engine.image.packing import KernelPacker, plain_kernels
from simplear_engine.image.recording import DeviceMemory, Recording
from simplear_engine.image.reference_ops import ReferenceOps
from simplear_engine.kernels import conv2d
from simplear_engine.kernels.fsq_decode import OP as FSQ_DECODE


class CpuBackend:
    def __init__(self, dtype: str, threads: int | None = None, pool: _C.ThreadPool | None = None):
        self.dtype = dtype
        self._pool = pool or new_pool(threads)
        self._isa = _C.chosen_isa()  # once, so that all pictures of this backend have the same bits
        self.packer = KernelPacker(dtype, self._pool)

    def codes_of(self, indices: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
        """int [...] -> float32 [..., D] in [-1, 1]."""
        codes = np.empty((*indices.shape, len(levels)), np.float32)
        arguments = {
            "indices": _C.Tensor.from_numpy(np.ascontiguousarray(indices.reshape(-1), np.int32)),
            "levels": _C.Tensor.from_numpy(np.array(levels, np.int32)),
            "codes": _C.Tensor.from_numpy(codes.reshape(-1, len(levels))),
        }
        FSQ_DECODE.run(self._isa, self._pool, arguments)
        return codes

    def prepare(self, shape: tuple[int, ...], run_network: Callable) -> Callable[[np.ndarray], np.ndarray]:
        program = _C.Program()
        plan = _C.StepPlan(max_tokens=1, max_pairs=1, max_logit_rows=1, max_draws=1, max_blocks_per_seq=1)
        run = lambda recording: program.run(plan, self._pool)  # noqa: E731
        return Recording(shape, run_network, self.dtype, program, self._isa, run)


class TritonBackend:
    """The kernels of a GPU, in a process that has torch and Triton; channels-last bfloat16 is what they are made for."""

    def __init__(self, dtype: str):
        for package in ("torch", "triton"):
            if importlib.util.find_spec(package) is None:
                raise UnsupportedError(
                    f"decoding pictures on a GPU needs the package {package}, which is not installed"
                )
        self.dtype = dtype
        self.packer = KernelPacker(dtype, None, pack_kernels=plain_kernels)

    codes_of = staticmethod(fsq.decode)

    def prepare(self, shape: tuple[int, ...], run_network: Callable) -> Callable[[np.ndarray], np.ndarray]:
        from simplear_engine.triton_program import TritonProgram

        program = TritonProgram()
        start = program.run

        def run(recording: Recording) -> None:
            nonlocal start
            program.write(recording.input)
            start()
            if start == program.run:
                # Kernels have been compiled by now: from the next picture on, all of them are one launch.
                start = program.captured()
            program.read_back(recording.output)

        return Recording(shape, run_network, self.dtype, program, "triton", run)


class DeviceBackend:
    """An engine's device: kernels that Triton compiles, or on the simulated one the CPU's, started by the engine's driver on
    a stream of their own, so that pictures are decoded beside the steps of others."""

    def __init__(self, dtype: str, backend):
        """backend: device_backend.DeviceBackend, for nobody else's programs."""
        self.dtype = dtype
        self._backend = backend
        self._impl = backend.isa if backend.is_simulated else "triton"
        self.packer = KernelPacker(dtype, backend.pool, conv2d.pack if backend.is_simulated else plain_kernels)
        self._resident: dict[tuple, tuple[_C.Tensor, _C.Tensor]] = {}  # weights: on the host, on the device

    codes_of = staticmethod(fsq.decode)

    def prepare(self, shape: tuple[int, ...], run_network: Callable) -> Callable[[np.ndarray], np.ndarray]:
        program = self._backend.new_program()
        calls = SimpleNamespace(add=lambda op, impl, fields: self._add(program, op, impl, fields))
        run = lambda recording: program.run()  # noqa: E731
        return Recording(shape, run_network, self.dtype, calls, self._impl, run, DeviceMemory(self._backend))

    def _add(self, program, op: str, impl: str, fields: dict) -> None:
        fields = {name: self._moved(value) if isinstance(value, _C.Tensor) else value for name, value in fields.items()}
        self._backend.add(program, op, fields, impl)

    def _moved(self, tensor: _C.Tensor) -> _C.Tensor:
        """`tensor` on the device."""
        if tensor.device == self._backend.device:
            return tensor
        key = tensor.address, tensor.dtype, tuple(tensor.shape)
        if key not in self._resident:
            self._resident[key] = tensor, self._backend.upload(tensor)
        return self._resident[key][1]


class ReferenceBackend:
    packer = ReferenceOps()
    codes_of = staticmethod(fsq.decode)

    def prepare(self, shape: tuple[int, ...], run_network: Callable) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: run_network(self.packer, x)
