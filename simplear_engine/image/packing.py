"""Weights on their way into the kernels: packed panels for convolutions, float32 vectors for norms."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from simplear_engine import _C
from simplear_engine.dtypes import encode_bfloat16
from simplear_engine.kernels import conv2d
from simplear_engine.kernels.conv2d import PackedKernels


def plain_kernels(weight: np.ndarray, dtype: str, pool=None) -> _C.Tensor:
    """A convolution's weights as the GPU kernels take them: as they are, in `dtype`."""
    if dtype == "bfloat16":
        return _C.Tensor.from_numpy(encode_bfloat16(weight), "bfloat16")
    return _C.Tensor.from_numpy(np.array(weight, np.float32))


@dataclass(frozen=True)
class PackedConv:
    weight: PackedKernels | _C.Tensor
    bias: _C.Tensor


@dataclass(frozen=True)
class PackedNorm:
    weight: _C.Tensor
    bias: _C.Tensor


class KernelPacker:
    """Turns folded layers into what the kernels compute with; `dtype` is that of the network's inside.

    pack_kernels(float32 [N, M, R, R, C], dtype, pool): what makes a convolution's weights.
    """

    def __init__(self, dtype: str, pool: _C.ThreadPool | None, pack_kernels: Callable = conv2d.pack):
        self.dtype, self.pool, self._pack_kernels = dtype, pool, pack_kernels
        # Folding errors of float32 are a thousandth of what rounding to bfloat16 does, and it folds twice as fast.
        self.fold_dtype = np.float32 if dtype == "bfloat16" else np.float64

    def pack_conv(self, weight: np.ndarray, bias: np.ndarray, full_precision: bool = False) -> PackedConv:
        """[out, in, kh, kw]. Full precision is for what reads the network's float32 input."""
        return self._pack(weight[None], bias, "float32" if full_precision else self.dtype)

    def pack_upsample(self, corners: np.ndarray, bias: np.ndarray) -> PackedConv:
        """[4, out, in, 2, 2]."""
        return self._pack(corners, bias, self.dtype)

    def pack_norm(self, weight: np.ndarray, bias: np.ndarray) -> PackedNorm:
        return PackedNorm(_vector(weight), _vector(bias))

    def _pack(self, weight: np.ndarray, bias: np.ndarray, dtype: str) -> PackedConv:
        channels_last = weight.transpose(0, 1, 3, 4, 2).astype(np.float32, order="C")
        return PackedConv(self._pack_kernels(channels_last, dtype, self.pool), _vector(bias))


def _vector(values: np.ndarray) -> _C.Tensor:
    return _C.Tensor.from_numpy(np.array(values, np.float32))
