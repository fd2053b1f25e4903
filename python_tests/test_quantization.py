"""Weights in int8 and int4: what is stored, what is multiplied, and that integers are exact."""

import numpy as np
import pytest

from simplear_engine import _C
from simplear_engine.kernels.op import all_ops
from simplear_engine.kernels.packed_weight import ReferenceWeight, pack_array
from simplear_engine.kernels.quantization import GROUP, QUANTIZED, quantize_rows, quantize_weight


@pytest.fixture(scope="module")
def pool():
    return _C.ThreadPool(2)


def unpacked(packed):
    """(integers [M, K'], scales [M, K' / 32]) read out of the panels that csrc/cpu/panels.h describes."""
    rows, k = packed.shape
    panels = -(-rows // 64)
    raw = packed.storage.numpy().view(np.uint8).reshape(panels, -1)
    if packed.dtype == "int8":
        padded = -(-k // 32) * 32
        body = raw[:, : padded * 64].reshape(panels, padded // 4, 64, 4)
        integers = body.transpose(0, 2, 1, 3).reshape(panels * 64, padded).astype(int) - 128
        scales = raw[:, padded * 64 :].copy().view(np.float32).reshape(-1, 1).repeat(padded // GROUP, axis=1)
        return integers[:rows], scales[:rows]
    blocks = raw.reshape(panels, -1, 2304)
    nibbles = blocks[:, :, :2048].reshape(panels, -1, 4, 64, 4)  # [panel, group, j, row, i]
    both = np.stack([nibbles & 15, nibbles >> 4], axis=3).astype(int) - 8  # [panel, group, j, half, row, i]
    integers = both.transpose(0, 4, 1, 2, 3, 5).reshape(panels * 64, -1)
    bits = blocks[:, :, 2048:].copy().view(np.uint16).reshape(panels, -1, 64).astype(np.uint32) << 16
    return integers[:rows], bits.view(np.float32).transpose(0, 2, 1).reshape(panels * 64, -1)[:rows]


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (37, 130), (50, 96)])
def test_packed_integers_and_scales_are_those_of_the_reference(dtype, shape, pool):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight[0] = 0
    weight[-1] *= 1e-30
    weight.flat[shape[1] // 2] = -1e-42
    expected = quantize_weight(weight, dtype)
    integers, scales = unpacked(pack_array(weight, dtype, pool))
    width, groups = expected.integers.shape[1], expected.scales.shape[1]
    np.testing.assert_array_equal(integers[:, :width], expected.integers)
    np.testing.assert_array_equal(scales[:, :groups], expected.scales)


@pytest.mark.parametrize("dtype, share", [("int8", 0.008), ("int4", 0.09)])
def test_rounding_error_is_what_the_format_allows(dtype, share):
    weight = np.random.default_rng(1).standard_normal((64, 512)).astype(np.float32)
    error = quantize_weight(weight, dtype).values() - weight
    assert error.std() < share * weight.std()
    if dtype == "int8":
        assert (np.abs(error) <= np.abs(weight).max(axis=1, keepdims=True) / 254 * 1.001).all()


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("is_extreme", [False, True])
@pytest.mark.parametrize("rows", [7, 40])
def test_sums_of_integers_are_exact(isa, dtype, is_extreme, rows, pool):
    """Scales are powers of two and sums stay below 2^24, so float32 holds every intermediate result exactly. Extreme: all
    terms of a sum are as large as they can be and of one sign."""
    rng = np.random.default_rng(2)
    m, k = 83, 160
    weight = rng.integers(-7, 8, (m, k)).astype(np.float32)
    x = rng.integers(-127, 128, (rows, k)).astype(np.float32)
    if dtype == "int8":
        weight = rng.integers(-127, 128, (m, k)).astype(np.float32)
        weight[:, 0] = 127
    else:
        weight.reshape(m, -1, GROUP)[..., 3] = -8
    x.reshape(rows, -1, GROUP)[..., 5] = 127
    if is_extreme:
        weight = np.where(weight == -8, weight, 127 if dtype == "int8" else 7).astype(np.float32)
        x[:] = 127
    np.testing.assert_array_equal(quantize_weight(weight, dtype).values(), weight)
    np.testing.assert_array_equal(quantize_rows(x).values(), x)
    y = _C.Tensor.zeros([rows, m], "float32")
    args = {"x": _C.Tensor.from_numpy(x), "weight": pack_array(weight, dtype, pool), "y": y}
    all_ops()["linear"].run(isa, pool, args)
    np.testing.assert_array_equal(y.numpy(), x @ weight.T)
    np.testing.assert_array_equal(ReferenceWeight(weight, dtype).product(x), x @ weight.T)


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_number_that_is_none_does_not_vanish(isa, dtype, bad, pool):
    x = np.ones((3, 70), np.float32)
    x[1, 66] = bad
    y = _C.Tensor.zeros([3, 20], "float32")
    weight = np.random.default_rng(3).standard_normal((20, 70)).astype(np.float32)
    args = {"x": _C.Tensor.from_numpy(x), "weight": pack_array(weight, dtype, pool), "y": y}
    all_ops()["linear"].run(isa, pool, args)
    assert not np.isfinite(y.numpy()[1]).any()
    assert np.isfinite(y.numpy()[[0, 2]]).all()


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weight_that_is_none_does_not_vanish(isa, dtype, bad, pool):
    weight = np.random.default_rng(3).standard_normal((20, 70)).astype(np.float32)
    weight[7, 40] = bad
    y = _C.Tensor.zeros([3, 20], "float32")
    x = _C.Tensor.from_numpy(np.ones((3, 70), np.float32))
    all_ops()["linear"].run(isa, pool, {"x": x, "weight": pack_array(weight, dtype, pool), "y": y})
    assert not np.isfinite(y.numpy()[:, 7]).any()
    assert np.isfinite(np.delete(y.numpy(), 7, axis=1)).all()
    assert not np.isfinite(quantize_weight(weight, dtype).values()[7]).all()


@pytest.mark.parametrize("isa", _C.available_isas())
def test_fuzzed_shapes_agree_with_the_baseline(isa, pool):
    rng = np.random.default_rng(4)
    linear = all_ops()["linear"]
    for _ in range(40):
        n, m, k = rng.integers(1, [80, 150, 300])
        dtype = rng.choice(["float32", "bfloat16", *QUANTIZED])
        k += k % 2
        x = _C.Tensor.from_numpy(rng.standard_normal((n, k)).astype(np.float32))
        weight = pack_array((rng.standard_normal((m, k)) / np.sqrt(k)).astype(np.float32), dtype, pool)
        results = []
        for impl in ("baseline", isa):
            y = _C.Tensor.from_numpy(np.full((n, m), np.nan, np.float32))
            linear.run(impl, pool, {"x": x, "weight": weight, "y": y})
            results.append(y.numpy().copy())
        np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-5, err_msg=f"{dtype} {n} x {m} x {k}")


def test_float8_keys_bear_a_large_channel_and_int8_keys_are_finer_without_one():
    """Of the two caches of one byte a number: integers share out the range of the largest, floats follow each number."""
    from simplear_engine.kernels.rope_append import numbers_of, quantize

    rng = np.random.default_rng(0)

    def rounded(x, codes):
        found, scale = quantize(x, codes)
        return numbers_of(found) * scale[..., None]

    def attended(q, k, v):
        scores = q @ k.T / 8
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True) @ v

    def error(bias, codes):
        found = []
        for _ in range(20):
            q = 2 * rng.standard_normal((14, 64)).astype(np.float32)
            k, v = rng.standard_normal((2, 900, 64)).astype(np.float32)
            k[:, 3] += bias
            exact, got = attended(q, k, v), attended(q, rounded(k, codes), rounded(v, codes))
            found.append(np.sqrt(np.square(got - exact).mean() / np.square(exact).mean()))
        return np.mean(found)

    assert error(0, np.int8) < 0.02 < 0.04 < error(0, np.uint8) < 0.07
    assert error(50, np.uint8) < 0.08 < 0.16 < error(50, np.int8)
