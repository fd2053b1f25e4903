"""The original network's greedy images, token for token (float32, tiny random weights, made with its own code)."""

import json
from pathlib import Path

import numpy as np
import pytest

from simplear_engine import Engine
from simplear_engine.config import model_config_from_dict

VECTORS = Path(__file__).parent / "data" / "simplear_lm_tiny.npz"
NUM_CODES = 512


@pytest.fixture(scope="module")
def vectors():
    return np.load(VECTORS)


def engine_of(vectors, **options):
    config = {**json.loads(bytes(vectors["config"])), "model_type": "qwen2"}
    weights = {name.removeprefix("weights/"): vectors[name] for name in vectors.files if name.startswith("weights/")}
    model = model_config_from_dict(config, config["vocab_size"] - NUM_CODES)
    return Engine.from_weights(model, weights, dtype="float32", **options)


@pytest.mark.parametrize("guidance_scale, side", [(1, 8), (3, 8), (6, 8), (6, 16)])
def test_greedy_image_is_the_original_one(vectors, guidance_scale, side):
    unconditional = None if guidance_scale == 1 else vectors["uncond_ids"][0]
    with engine_of(vectors) as engine:
        (image,) = engine.generate_from_ids(
            vectors["cond_ids"][0], unconditional, height=side * 16, width=side * 16, guidance_scale=guidance_scale,
            temperature=0,
        )  # fmt: skip
    np.testing.assert_array_equal(image.tokens, vectors[f"greedy_cfg{guidance_scale}_side{side}"])


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_bf16", "amx"])
def test_every_instruction_set_draws_the_original_image(vectors, isa, monkeypatch):
    from simplear_engine import _C

    if isa not in _C.available_isas():
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("SIMPLEAR_CPU_ISA", isa)
    with engine_of(vectors) as engine:
        (image,) = engine.generate_from_ids(
            vectors["cond_ids"][0], vectors["uncond_ids"][0], height=256, width=256, guidance_scale=6, temperature=0
        )
    np.testing.assert_array_equal(image.tokens, vectors["greedy_cfg6_side16"])
