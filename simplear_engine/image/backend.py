"""What computes: packs weights and prepares a network for a size. The C++ kernels, or NumPy as their reference."""

from collections.abc import Callable

import numpy as np

from simplear_engine import _C
from simplear_engine.image.packing import KernelPacker
from simplear_engine.image.recording import Recording
from simplear_engine.image.reference_ops import ReferenceOps


class CpuBackend:
    def __init__(self, dtype: str, threads: int | None = None, pool: _C.ThreadPool | None = None):
        self.dtype = dtype
        self._pool = pool or _C.ThreadPool(_C.default_num_threads() if threads is None else threads)
        self.packer = KernelPacker(dtype, self._pool)

    def prepare(self, shape: tuple[int, ...], run_network: Callable) -> Callable[[np.ndarray], np.ndarray]:
        return Recording(shape, run_network, self.dtype, self._pool)


class ReferenceBackend:
    packer = ReferenceOps()

    def prepare(self, shape: tuple[int, ...], run_network: Callable) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: run_network(self.packer, x)
