"""The image tokenizer against numbers of the published implementation (a small network of the same layout)."""

from pathlib import Path

import numpy as np
import pytest

from simplear_engine.image import CosmosTokenizer, fsq

DATA = Path(__file__).parent / "data"
MINI = DATA / "cosmos_dv_mini.safetensors"


@pytest.fixture(scope="module")
def vectors():
    return np.load(DATA / "cosmos_dv_mini_vectors.npz")


@pytest.fixture(scope="module")
def tokenizer():
    return CosmosTokenizer.from_pretrained(MINI)


@pytest.fixture(scope="module")
def tokenizer_bf16():
    return CosmosTokenizer.from_pretrained(MINI, dtype="bfloat16")


@pytest.mark.parametrize("size", ["4x4", "8x8", "4x6"])
def test_decoded_image_matches(tokenizer, vectors, size):
    expected = vectors[f"dec_{size}_image"][:, :, 0]
    image = tokenizer.decode(vectors[f"dec_{size}_indices"][0])
    assert image.dtype == np.float32 and image.shape == expected.shape
    assert np.abs(image - expected).max() < 3e-5


@pytest.mark.parametrize("size", ["64x64", "128x96"])
def test_encoded_indices_are_equal(tokenizer, vectors, size):
    indices = tokenizer.encode(vectors[f"enc_{size}_image"][:, :, 0])
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(indices, vectors[f"enc_{size}_indices"][0])


@pytest.mark.parametrize("size", ["4x4", "8x8"])
def test_bfloat16_image_is_as_near_as_the_original_in_bfloat16(tokenizer_bf16, vectors, size):
    difference = np.abs(
        tokenizer_bf16.decode(vectors[f"dec_{size}_indices"][0]) - vectors[f"dec_{size}_image"][:, :, 0]
    )
    assert difference.max() < 0.12
    assert difference.mean() < 0.015


@pytest.mark.parametrize("size", ["64x64", "128x96"])
def test_bfloat16_indices_mostly_agree(tokenizer_bf16, vectors, size):
    indices = tokenizer_bf16.encode(vectors[f"enc_{size}_image"][:, :, 0])
    assert (indices == vectors[f"enc_{size}_indices"][0]).mean() > 0.69


def test_fsq_codes_of_known_indices(tokenizer, vectors):
    levels = tokenizer.config.levels
    np.testing.assert_array_equal(fsq.decode(vectors["fsq_probe_indices"], levels), vectors["fsq_probe_codes"])
    np.testing.assert_array_equal(fsq.encode(vectors["fsq_sweep_z"], levels), vectors["fsq_sweep_indices"])
    np.testing.assert_array_equal(fsq.decode(vectors["fsq_sweep_indices"], levels), vectors["fsq_sweep_codes"])


def test_fsq_round_trip_over_every_code():
    levels = (8, 5, 3, 2)
    indices = np.arange(8 * 5 * 3 * 2)
    half = np.asarray(levels) // 2
    bounded = np.round(fsq.decode(indices, levels) * half)  # what the tanh would have to give
    half_width = (np.asarray(levels) - 1) * 1.001 / 2
    offset = np.where(np.asarray(levels) % 2, 0.0, 0.5)
    z = np.arctanh((bounded + offset) / half_width) - np.arctanh(offset / half_width)
    np.testing.assert_array_equal(fsq.encode(z.astype(np.float32), levels), indices)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 5), (3, 2), (7, 4)])
def test_any_grid_size_decodes_and_encodes(tokenizer, height, width):
    rng = np.random.default_rng(height * 10 + width)
    image = tokenizer.decode(rng.integers(0, tokenizer.num_codes, (1, height, width)))
    assert image.shape == (1, 3, 16 * height, 16 * width)
    assert tokenizer.encode(image).shape == (1, height, width)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batch_equals_single_images_bit_for_bit(tokenizer, tokenizer_bf16, dtype):
    t = tokenizer if dtype == "float32" else tokenizer_bf16
    indices = np.random.default_rng(3).integers(0, t.num_codes, (3, 3, 5))
    images = t.decode(indices)
    codes = t.encode(images)
    for one in range(3):
        np.testing.assert_array_equal(t.decode(indices[one : one + 1])[0], images[one])
        np.testing.assert_array_equal(t.encode(images[one : one + 1])[0], codes[one])


def test_translated_codes_do_not_leak_between_images(tokenizer):
    """Zero padding must end each image of a batch, not its neighbour."""
    rng = np.random.default_rng(4)
    first, second, third = rng.integers(0, tokenizer.num_codes, (3, 1, 2, 3))
    a = tokenizer.decode(np.concatenate([first, second]))
    b = tokenizer.decode(np.concatenate([first, third]))
    np.testing.assert_array_equal(a[0], b[0])
    assert np.abs(a[1] - b[1]).max() > 0.01
