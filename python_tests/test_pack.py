"""Packed weights against a plain statement of their layout (csrc/cpu/panels.h)."""

import numpy as np
import pytest

from simplear_engine import _C
from simplear_engine.dtypes import decode_bfloat16, encode_bfloat16


def panels_of(matrix: np.ndarray, dtype: str) -> np.ndarray:
    """float32 [N, K] -> [ceil(N/64), K, 64], or for bfloat16 [ceil(N/64), K'/2, 64, 2]; flat."""
    rows, k = matrix.shape
    pair = 2 if dtype == "bfloat16" else 1
    padded = np.zeros((-(-rows // 64) * 64, -(-k // pair) * pair), np.float32)
    padded[:rows, :k] = matrix
    values = encode_bfloat16(padded) if dtype == "bfloat16" else padded
    return values.reshape(-1, 64, values.shape[1] // pair, pair).transpose(0, 2, 1, 3).reshape(-1)


def tensor_of(matrix: np.ndarray, dtype: str):
    if dtype == "float16":
        return _C.Tensor.from_numpy(matrix.astype(np.float16))
    if dtype == "bfloat16":
        return _C.Tensor.from_numpy(encode_bfloat16(matrix), "bfloat16")
    return _C.Tensor.from_numpy(matrix)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("k", [1, 2, 7, 254, 256, 257, 600])
@pytest.mark.parametrize("packed_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_panels_hold_the_rows_of_all_parts(stored, packed_dtype, k, threads):
    rng = np.random.default_rng(k)
    parts = [rng.standard_normal((rows, k)).astype(np.float32) for rows in (5, 16, 40, 30)]
    # What is stored is rounded already; packing may round once more and no more.
    parts = [part.astype(np.float16).astype(np.float32) for part in parts]
    if stored == "bfloat16":
        parts = [decode_bfloat16(encode_bfloat16(part)) for part in parts]
    pool = _C.ThreadPool(threads)
    packed = _C.Tensor.zeros([_C.packed_size(91, k, packed_dtype)], packed_dtype)
    packed.numpy().view(np.uint8).fill(0xFF)
    _C.pack_panels([tensor_of(part, stored) for part in parts], packed, False, pool)
    np.testing.assert_array_equal(packed.numpy(), panels_of(np.concatenate(parts), packed_dtype))


def test_parts_of_two_dtypes_may_share_a_panel():
    rng = np.random.default_rng(0)
    parts = [decode_bfloat16(encode_bfloat16(rng.standard_normal((8, 6)).astype(np.float32))) for _ in range(2)]
    packed = _C.Tensor.zeros([_C.packed_size(16, 6, "bfloat16")], "bfloat16")
    _C.pack_panels([tensor_of(parts[0], "float32"), tensor_of(parts[1], "bfloat16")], packed, False, _C.ThreadPool(1))
    np.testing.assert_array_equal(packed.numpy(), panels_of(np.concatenate(parts), "bfloat16"))


def test_rounding_to_bfloat16_goes_to_even_and_keeps_nan_and_infinity():
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F800000, 0xFF800000, 0x7F800001, 0x7F7FFFFF, 0x80000000])
    values = bits.astype(np.uint32).view(np.float32).reshape(1, 8)
    packed = _C.Tensor.zeros([_C.packed_size(1, 8, "bfloat16")], "bfloat16")
    _C.pack_panels([_C.Tensor.from_numpy(values)], packed, False, _C.ThreadPool(1))
    row = packed.numpy().reshape(4, 64, 2)[:, 0].reshape(-1)
    assert [hex(x) for x in row] == ["0x3f80", "0x3f82", "0x3f81", "0x7f80", "0xff80", "0x7fc0", "0x7f80", "0x8000"]
