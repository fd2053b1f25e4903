"""The image tokenizer's decoder on the Triton kernels, against numbers of the published implementation."""

from pathlib import Path

import numpy as np
import pytest

from simplear_engine import _C
from simplear_engine.errors import InvalidRequestError, UnsupportedError
from simplear_engine.image import CosmosTokenizer
from simplear_engine.image.backend import TritonBackend
from simplear_engine.image.source import open_tokenizer
from simplear_engine.testing import triton_interpreter

pytest.importorskip("triton")
triton_interpreter.mend()

DATA = Path(__file__).parent / "data"
MINI = DATA / "cosmos_dv_mini.safetensors"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def vectors():
    return np.load(DATA / "cosmos_dv_mini_vectors.npz")


def decoded(indices, dtype):
    return CosmosTokenizer(open_tokenizer(MINI), TritonBackend(dtype)).decode(indices)


def test_decoded_picture_matches(vectors):
    difference = np.abs(decoded(vectors["dec_4x4_indices"][0], "float32") - vectors["dec_4x4_image"][:, :, 0])
    assert difference.max() < 3e-5


def test_bfloat16_picture_is_as_near_as_the_original_in_bfloat16(vectors):
    difference = np.abs(decoded(vectors["dec_4x4_indices"][0], "bfloat16") - vectors["dec_4x4_image"][:, :, 0])
    assert difference.max() < 0.12
    assert difference.mean() < 0.015


@pytest.mark.skipif(triton_interpreter.is_interpreting(), reason="only on a GPU is the second one a graph's replay")
def test_second_picture_of_a_size_is_as_good_as_the_first():
    tokenizer = CosmosTokenizer(open_tokenizer(MINI), TritonBackend("float32"))
    indices = np.array([[[7, 8]], [[9, 10]]])
    first, second = (tokenizer.decode(one[None]) for one in indices)
    np.testing.assert_array_equal(tokenizer.decode(indices[:1]), first)
    assert (first != second).any()


@pytest.mark.skipif(bool(_C.cuda_devices()[0]), reason="there is a GPU")
def test_gpu_that_is_absent_is_an_error():
    with pytest.raises(UnsupportedError, match="device='cuda': no GPU was found"):
        CosmosTokenizer.from_pretrained(MINI, device="cuda")
    with pytest.raises(InvalidRequestError, match="device: expected cpu or cuda, got 'gpu'"):
        CosmosTokenizer.from_pretrained(MINI, device="gpu")
