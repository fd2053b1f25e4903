"""Weight matrices as the ops with weights take them: packed for the kernels, rounded for their references."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simplear_engine.dtypes import decode_bfloat16, encode_bfloat16
from simplear_engine.errors import UnsupportedError
from simplear_engine.kernels import float8, quantization
from simplear_engine.kernels.quantization import QUANTIZED

WEIGHT = ("float32", "bfloat16", *QUANTIZED)  # on a CPU
ANY_WEIGHT = (*WEIGHT, float8.NAME)
TURN_ROWS = 32  # of each matrix, where two are packed by turns


@dataclass(frozen=True)
class PackedWeight:
    """A weight matrix in panels (csrc/cpu/panels.h): `shape` is the logical [M, K], `storage` the packed `_C.Tensor`."""

    storage: Any
    shape: tuple[int, int]

    @property
    def dtype(self) -> str:
        return self.storage.dtype


def pack(parts: Sequence[Any], dtype: str, pool, interleaved: bool = False) -> PackedWeight:
    """Packs the rows of `parts` (`_C.Tensor` [M_i, K] of any float type) as `dtype`: one part after the other, or by
    turns, 32 rows of each (`pack_again` fills the same storage)."""
    from simplear_engine import _C

    rows, k = sum(part.shape[0] for part in parts), parts[0].shape[1]
    if dtype == "bfloat16" and k % 2:
        raise UnsupportedError(
            f"a weight matrix of {k} columns: bfloat16 takes them in pairs, so an even number is needed; "
            f'use dtype="float32"'
        )
    stored_rows = len(parts) * (-(-parts[0].shape[0] // TURN_ROWS) * TURN_ROWS) if interleaved else rows
    packed = PackedWeight(_C.Tensor.zeros([_C.packed_size(stored_rows, k, dtype)], dtype), (rows, k))
    pack_again(packed, parts, pool, interleaved)
    return packed


def pack_again(packed: PackedWeight, parts: Sequence[Any], pool, interleaved: bool = False) -> None:
    """Packs changed `parts` in place."""
    from simplear_engine import _C

    _C.pack_panels(list(parts), packed.storage, interleaved, pool)


def pack_array(weight: np.ndarray, dtype: str, pool) -> PackedWeight:
    """Packs a float32 array [M, K] as `dtype`."""
    from simplear_engine import _C

    return pack([_C.Tensor.from_numpy(np.ascontiguousarray(weight))], dtype, pool)


class ReferenceWeight:
    """A matrix [M, K] as `dtype` rounds it, and the product that a kernel computes with it."""

    def __init__(self, weight: np.ndarray, dtype: str):
        self.dtype = dtype
        if dtype in QUANTIZED:
            self._quantized = quantization.quantize_weight(weight, dtype)
        elif dtype == float8.NAME:
            codes, scales = float8.quantize_rows(weight)
            self._values = float8.decode(codes).astype(np.float64) * scales[:, None]
        else:
            self._values = _rounded(weight, dtype).astype(np.float64)

    def product(self, x: np.ndarray) -> np.ndarray:
        """float32 [N, K] -> float32 [N, M]: x is rounded as the weights' type wants it."""
        if self.dtype in QUANTIZED:
            return quantization.product(quantization.quantize_rows(x), self._quantized).astype(np.float32)
        return (
            _rounded(x, "float32" if self.dtype == "float32" else "bfloat16").astype(np.float64) @ self._values.T
        ).astype(np.float32)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """float32 [N, K]: x / sqrt(mean(x^2) + eps) * weight."""
    scale = 1 / np.sqrt(np.mean(np.square(x.astype(np.float64)), axis=-1, keepdims=True) + eps)
    with np.errstate(invalid="ignore"):
        return (x * scale.astype(np.float32) * weight).astype(np.float32)


def norm_slack(num_activations: int, dtype: str, slack: float) -> float:
    """What a product with `dtype` weights behind a norm may differ by from its reference, beyond rounding: `slack` or 0.

    One activation in some ten thousand lies so near the middle between two roundings that the last bit of the norm decides
    which it takes. Cases with fewer of them have to agree as if there was no such thing.
    """
    return slack if dtype != "float32" and num_activations > 5000 else 0.0


def _rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    return decode_bfloat16(encode_bfloat16(x)) if dtype == "bfloat16" else x
