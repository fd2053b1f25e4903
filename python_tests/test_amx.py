"""Products on AMX: bfloat16 as the manual defines them, integers as every other instruction set has them, to the bit."""

import numpy as np
import pytest

from simplear_engine import _C
from simplear_engine.dtypes import decode_bfloat16, encode_bfloat16
from simplear_engine.kernels.op import all_ops
from simplear_engine.kernels.packed_weight import pack_array
from simplear_engine.kernels.quantization import QUANTIZED

pytestmark = pytest.mark.skipif("amx" not in _C.available_isas(), reason="this processor has no AMX")
DEPTH = 32  # of one product of tiles


@pytest.fixture(scope="module")
def pool():
    return _C.ThreadPool(2)


def linear(isa, x, weight, dtype, pool):
    """x [N, K] and weight [M, K], float32, in the form that `dtype` takes them: [N, M] float32."""
    rows = _C.Tensor.from_numpy(encode_bfloat16(x), "bfloat16") if dtype == "bfloat16" else _C.Tensor.from_numpy(x)
    y = _C.Tensor.from_numpy(np.full((len(x), len(weight)), np.nan, np.float32))
    all_ops()["linear"].run(isa, pool, {"x": rows, "weight": pack_array(weight, dtype, pool), "y": y})
    return y.numpy().copy()


def as_the_manual_says(x, weight):
    """Of each 32 k, products of even and of odd k have a sum each, one rounding a product, as float64 holds product and sum
    exactly; both together are added to the sum of all."""
    x, weight = (decode_bfloat16(encode_bfloat16(values)).astype(np.float64) for values in (x, weight))
    total = np.zeros((len(x), len(weight)), np.float32)
    for begin in range(0, x.shape[1], DEPTH):
        parity = np.zeros((2, *total.shape), np.float32)
        for k in range(begin, min(begin + DEPTH, x.shape[1])):
            parity[k % 2] = (parity[k % 2] + np.outer(x[:, k], weight[:, k])).astype(np.float32)
        total += parity[0] + parity[1]
    return total


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 31, 33, 64, 65, 100])
@pytest.mark.parametrize("k", [2, 30, 64, 70, 896])
def test_bfloat16_is_added_as_the_manual_says(rows, k, pool):
    rng = np.random.default_rng(rows * k)
    x, weight = (rng.standard_normal((n, k)).astype(np.float32) for n in (rows, 77))
    np.testing.assert_array_equal(linear("amx", x, weight, "bfloat16", pool), as_the_manual_says(x, weight))


def test_numbers_too_small_for_a_normal_one_count_as_zero(pool):
    x = np.full((3, 32), 2.0**-130, np.float32)
    assert (linear("amx", x, np.full((5, 32), 2.0**100, np.float32), "bfloat16", pool) == 0).all()


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("rows", [11, 12, 16, 17, 47, 64, 65, 130])
def test_integers_are_those_of_vnni_bit_for_bit(dtype, rows, pool):
    """Few rows take VNNI's code on AMX, too, many of them the tiles': a row must not tell (contract C2)."""
    rng = np.random.default_rng(rows)
    x, weight = (rng.standard_normal((n, 544)).astype(np.float32) for n in (rows, 100))
    x[rows // 2] *= 1000
    expected = linear("avx512_vnni", x, weight, dtype, pool)
    np.testing.assert_array_equal(linear("amx", x, weight, dtype, pool), expected)
    np.testing.assert_array_equal(linear("amx", x[-3:], weight, dtype, pool), expected[-3:])


@pytest.mark.parametrize("dtype", ["bfloat16", *QUANTIZED])
@pytest.mark.parametrize("rows", [3, 17, 40])
def test_a_row_that_is_no_number_stays_alone(dtype, rows, pool):
    rng = np.random.default_rng(rows)
    x, weight = (rng.standard_normal((n, 130)).astype(np.float32) for n in (rows, 50))
    expected = linear("amx", x, weight, dtype, pool)
    x[rows - 2, 128] = np.nan
    got = linear("amx", x, weight, dtype, pool)
    assert np.isnan(got[rows - 2]).all()
    others = np.arange(rows) != rows - 2
    np.testing.assert_array_equal(got[others], expected[others])
