"""The image tokenizer's decoder on the Triton kernels, against numbers of the published implementation."""

from pathlib import Path

import numpy as np
import pytest

from simplear_engine.image import CosmosTokenizer
from simplear_engine.image.backend import TritonBackend
from simplear_engine.image.source import open_tokenizer
from simplear_engine.testing import triton_interpreter

pytest.importorskip("triton")
triton_interpreter.mend()

DATA = Path(__file__).parent / "data"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def vectors():
    return np.load(DATA / "cosmos_dv_mini_vectors.npz")


def decoded(indices, dtype):
    return CosmosTokenizer(open_tokenizer(DATA / "cosmos_dv_mini.safetensors"), TritonBackend(dtype)).decode(indices)


def test_decoded_picture_matches(vectors):
    difference = np.abs(decoded(vectors["dec_4x4_indices"][0], "float32") - vectors["dec_4x4_image"][:, :, 0])
    assert difference.max() < 3e-5


def test_bfloat16_picture_is_as_near_as_the_original_in_bfloat16(vectors):
    difference = np.abs(decoded(vectors["dec_4x4_indices"][0], "bfloat16") - vectors["dec_4x4_image"][:, :, 0])
    assert difference.max() < 0.12
    assert difference.mean() < 0.015
