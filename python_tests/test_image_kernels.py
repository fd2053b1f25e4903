"""The image tokenizer on the C++ kernels: same numbers for any threads, sizes, instruction sets, and as in NumPy."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from simplear_engine import _C
from simplear_engine.image import CosmosTokenizer, TokenizerConfig
from simplear_engine.image.backend import ReferenceBackend
from simplear_engine.image.random import write_random_tokenizer
from simplear_engine.image.source import open_tokenizer

DATA = Path(__file__).parent / "data"
MINI = DATA / "cosmos_dv_mini.safetensors"
INDICES = np.random.default_rng(1).integers(0, 64000, (2, 5, 3))

CONFIGS = {
    "video_odd_channels": {"name": "DV", "channels": 5, "channels_mult": [1, 3], "num_res_blocks": 1, "patch_size": 2,
                           "spatial_compression": 4, "temporal_compression": 2, "z_channels": 3, "embedding_dim": 2,
                           "levels": [9, 4]},
    "video_two_temporal_steps": {"name": "DV", "channels": 8, "channels_mult": [1, 2, 1, 3], "num_res_blocks": 1,
                                 "patch_size": 2, "spatial_compression": 16, "temporal_compression": 8, "z_channels": 4,
                                 "embedding_dim": 1, "levels": [16]},
    "image_many_blocks": {"name": "DI", "channels": 12, "channels_mult": [2, 7], "num_res_blocks": 3, "patch_size": 4,
                          "spatial_compression": 8, "z_channels": 9, "embedding_dim": 5, "levels": [2, 3, 4, 5, 6],
                          "num_groups": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_kernels_agree_with_numpy(tmp_path, name):
    config = TokenizerConfig.from_dict(CONFIGS[name], name)
    path = write_random_tokenizer(tmp_path, config, seed=3)
    reference = CosmosTokenizer(open_tokenizer(path), ReferenceBackend())
    tokenizer = CosmosTokenizer.from_pretrained(path)
    rounded = CosmosTokenizer.from_pretrained(path, dtype="bfloat16")
    indices = np.random.default_rng(2).integers(0, config.num_codes, (2, 4, 3))
    expected = reference.decode(indices)
    scale = np.abs(expected).max()
    assert np.abs(tokenizer.decode(indices) - expected).max() < 1e-5 * scale
    assert np.abs(rounded.decode(indices) - expected).mean() < 0.015 * expected.std()
    image = np.clip(expected / scale, -1, 1)
    assert (tokenizer.encode(image) == reference.encode(image)).mean() > 0.95


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_two_and_three_threads_agree_bit_for_bit(dtype):
    alone = CosmosTokenizer.from_pretrained(MINI, dtype=dtype, threads=1)
    image = alone.decode(INDICES)
    codes = alone.encode(image)
    for threads in (2, 3):
        crowd = CosmosTokenizer.from_pretrained(MINI, dtype=dtype, threads=threads)
        np.testing.assert_array_equal(crowd.decode(INDICES), image)
        np.testing.assert_array_equal(crowd.encode(image), codes)


@pytest.mark.parametrize("isa", _C.available_isas())
def test_every_instruction_set_matches_the_original(isa, monkeypatch):
    monkeypatch.setenv("SIMPLEAR_CPU_ISA", isa)
    vectors = np.load(DATA / "cosmos_dv_mini_vectors.npz")
    tokenizer = CosmosTokenizer.from_pretrained(MINI)
    image = tokenizer.decode(vectors["dec_4x6_indices"][0])
    assert np.abs(image - vectors["dec_4x6_image"][:, :, 0]).max() < 3e-5
    indices = tokenizer.encode(vectors["enc_128x96_image"][:, :, 0])
    np.testing.assert_array_equal(indices, vectors["enc_128x96_indices"][0])
    rounded = CosmosTokenizer.from_pretrained(MINI, dtype="bfloat16").decode(vectors["dec_4x6_indices"][0])
    assert np.abs(rounded - vectors["dec_4x6_image"][:, :, 0]).max() < 0.12


def test_results_outlive_the_next_call_and_a_change_of_size():
    tokenizer = CosmosTokenizer.from_pretrained(MINI)
    first = tokenizer.decode(INDICES)
    kept = first.copy()
    other = tokenizer.decode(INDICES[:, ::-1])
    tokenizer.decode(INDICES[:1, :2])
    np.testing.assert_array_equal(first, kept)
    assert (other != kept).any()
    np.testing.assert_array_equal(tokenizer.decode(INDICES), kept)


def test_threads_of_python_may_share_a_tokenizer():
    tokenizer = CosmosTokenizer.from_pretrained(MINI)
    grids = [INDICES, INDICES[:, :4], INDICES[:1]]
    expected = [tokenizer.decode(grid) for grid in grids]
    wrong = []

    def work(start):
        for turn in range(6):
            which = (start + turn) % len(grids)
            if not np.array_equal(tokenizer.decode(grids[which]), expected[which]):
                wrong.append(which)

    workers = [threading.Thread(target=work, args=(start,)) for start in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_pool_may_be_shared_with_somebody_else():
    pool = _C.ThreadPool(2)
    a = CosmosTokenizer.from_pretrained(MINI, pool=pool)
    b = CosmosTokenizer.from_pretrained(MINI, pool=pool)
    np.testing.assert_array_equal(a.decode(INDICES), b.decode(INDICES))


def test_decoding_loads_nothing_heavier_than_numpy():
    script = (
        "import sys, numpy as np\n"
        "from simplear_engine.image import CosmosTokenizer\n"
        f"CosmosTokenizer.from_pretrained({str(MINI)!r}).decode(np.zeros((1, 2, 2), int))\n"
        "heavy = {'torch', 'transformers', 'safetensors', 'scipy', 'pickle5'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
