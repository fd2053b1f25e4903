"""What computes: packs weights and prepares a network for a size. The C++ kernels, Triton, or NumPy as the reference."""

import importlib.util
from collections.abc import Callable

import numpy as np

from simplear_engine import _C
from simplear_engine.errors import UnsupportedError
from simplear_engine.image import fsq
from simplear_engine.image.packing import KernelPacker, plain_kernels
from simplear_engine.image.recording import Recording
from simplear_engine.image.reference_ops import ReferenceOps
from simplear_engine.kernels.fsq_decode import OP as FSQ_DECODE


class CpuBackend:
    def __init__(self, dtype: str, threads: int | None = None, pool: _C.ThreadPool | None = None):
        self.dtype = dtype
        self._pool = pool or _C.ThreadPool(_C.default_num_threads() if threads is None else threads)
        self.packer = KernelPacker(dtype, self._pool)

    def codes_of(self, indices: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
        """int [...] -> float32 [..., D] in [-1, 1]."""
        codes = np.empty((*indices.shape, len(levels)), np.float32)
        arguments = {
            "indices": _C.Tensor.from_numpy(np.ascontiguousarray(indices.reshape(-1), np.int32)),
            "levels": _C.Tensor.from_numpy(np.array(levels, np.int32)),
            "codes": _C.Tensor.from_numpy(codes.reshape(-1, len(levels))),
        }
        FSQ_DECODE.run(_C.chosen_isa(), self._pool, arguments)
        return codes

    def prepare(self, shape: tuple[int, ...], run_network: Callable) -> Callable[[np.ndarray], np.ndarray]:
        program = _C.Program()
        plan = _C.StepPlan(max_tokens=1, max_pairs=1, max_logit_rows=1, max_draws=1, max_blocks_per_seq=1)
        run = lambda recording: program.run(plan, self._pool)  # noqa: E731
        return Recording(shape, run_network, self.dtype, program, _C.chosen_isa(), run)


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


class ReferenceBackend:
    packer = ReferenceOps()
    codes_of = staticmethod(fsq.decode)

    def prepare(self, shape: tuple[int, ...], run_network: Callable) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: run_network(self.packer, x)
