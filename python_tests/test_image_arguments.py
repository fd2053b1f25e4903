"""What CosmosTokenizer says to arguments and half-files that make no sense."""

from pathlib import Path

import numpy as np
import pytest

from simplear_engine.errors import CheckpointError, InvalidRequestError, NumericalError
from simplear_engine.image import CosmosTokenizer
from simplear_engine.image.random import write_random_tokenizer
from simplear_engine.safetensors_file import read_safetensors, write_safetensors

MINI = Path(__file__).parent / "data" / "cosmos_dv_mini.safetensors"
SMALL = {"name": "DI", "channels": 32, "channels_mult": [1, 1], "num_res_blocks": 1, "patch_size": 2,
         "spatial_compression": 4, "z_channels": 4, "embedding_dim": 2, "levels": [4, 3], "num_groups": 8}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return CosmosTokenizer.from_pretrained(MINI)


def test_attributes(tokenizer):
    assert tokenizer.compression == 16
    assert tokenizer.num_codes == 64000
    assert tokenizer.config.name == "DV"


@pytest.mark.parametrize(
    "indices, text",
    [
        (np.zeros((4, 4), int), r"expected integers \[B, h, w\]"),
        (np.zeros((1, 4, 4), np.float32), "expected integers"),
        (np.zeros((1, 0, 4), int), "at least one code"),
        (np.full((1, 2, 2), 64000), r"expected 0\.\.63999, got 64000"),
        (np.full((1, 2, 2), -1), "got -1"),
    ],
)
def test_wrong_indices_are_refused(tokenizer, indices, text):
    with pytest.raises(InvalidRequestError, match=text):
        tokenizer.decode(indices)


@pytest.mark.parametrize(
    "images, text",
    [
        (np.zeros((3, 64, 64), np.float32), r"\[B, 3, H, W\]"),
        (np.zeros((1, 4, 64, 64), np.float32), r"\[B, 3, H, W\]"),
        (np.zeros((1, 3, 64, 64), np.uint8), "expected floats"),
        (np.zeros((1, 3, 64, 65), np.float32), "multiples of 16"),
        (np.full((1, 3, 16, 16), np.nan, np.float32), "finite"),
    ],
)
def test_wrong_images_are_refused(tokenizer, images, text):
    with pytest.raises(InvalidRequestError, match=text):
        tokenizer.encode(images)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"dtype": "float16"}, "dtype: .*float16"),
        ({"dtype": np.array(["float32", "bfloat16"])}, "dtype: .*array"),
        ({"device": "tpu"}, "device: .*tpu"),
        ({"threads": "2"}, "threads: .*'2'"),
        ({"threads": True}, "threads: .*True"),
        ({"threads": 0}, "threads: .*0"),
    ],
    ids=str,
)
def test_impossible_option_is_named(options, text):
    with pytest.raises(InvalidRequestError, match=text):
        CosmosTokenizer.from_pretrained(MINI, **options)


def test_pixels_that_are_no_numbers_are_an_error_and_no_black_picture(tmp_path):
    path = write_random_tokenizer(tmp_path / "large.safetensors", SMALL)
    tensors, metadata = read_safetensors(path)
    large = {name: tensor.data * np.float32(1e12) for name, tensor in tensors.items()}
    write_safetensors(path, large, metadata)
    with pytest.raises(NumericalError, match="large.safetensors: .* NaN or infinity"):
        CosmosTokenizer.from_pretrained(path, threads=1).decode(np.zeros((1, 2, 2), int))


def test_kernels_are_chosen_once(monkeypatch):
    tokenizer = CosmosTokenizer.from_pretrained(MINI, threads=1)
    monkeypatch.setenv("SIMPLEAR_CPU_ISA", "nonsense")
    assert np.isfinite(tokenizer.decode(np.zeros((1, 2, 2), int))).all()


def test_decoder_alone_decodes_and_says_what_it_lacks(tmp_path):
    whole = CosmosTokenizer.from_pretrained(write_random_tokenizer(tmp_path / "whole.safetensors", SMALL, seed=5))
    path = write_random_tokenizer(tmp_path / "half.safetensors", SMALL, seed=5, parts=("decoder",))
    half = CosmosTokenizer.from_pretrained(path)
    indices = np.arange(12).reshape(1, 3, 4)
    np.testing.assert_array_equal(half.decode(indices), whole.decode(indices))
    with pytest.raises(CheckpointError, match="no encoder"):
        half.encode(np.zeros((1, 3, 8, 8), np.float32))


def test_encoder_alone_encodes_and_says_what_it_lacks(tmp_path):
    whole = CosmosTokenizer.from_pretrained(write_random_tokenizer(tmp_path / "whole.safetensors", SMALL, seed=5))
    path = write_random_tokenizer(tmp_path / "half.safetensors", SMALL, seed=5, parts=("encoder",))
    half = CosmosTokenizer.from_pretrained(path)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 12)).astype(np.float32)
    np.testing.assert_array_equal(half.encode(images), whole.encode(images))
    with pytest.raises(CheckpointError, match="no decoder"):
        half.decode(np.zeros((1, 2, 2), int))


def test_random_tokenizer_is_the_same_for_the_same_seed(tmp_path):
    first = write_random_tokenizer(tmp_path / "a.safetensors", SMALL, seed=1).read_bytes()
    assert first == write_random_tokenizer(tmp_path / "b.safetensors", SMALL, seed=1).read_bytes()
    assert first != write_random_tokenizer(tmp_path / "c.safetensors", SMALL, seed=2).read_bytes()
