"""What int8 and int4 make of a trained model: next-code distributions of the embedded one stay close to float32.

Bounds are 1.6 (int4) to 2.7 times what these pictures give, and faults of the kind that they are meant to find (a scale for
a row where 32 weights should have one, a lost group, a wrong scale) must exceed them. Checked are whole engines; integers
and scales themselves are test_quantization.py's business.
"""

from dataclasses import replace

import numpy as np
import pytest

from simplear_engine import Engine
from simplear_engine.checkpoint import load_checkpoint, resolve
from simplear_engine.dtypes import to_float32
from simplear_engine.weights import LM_HEAD

PROMPTS = ("a red apple", "two dogs", "a cat and a dog", "a rocket")
MEAN_KL_BOUNDS = {"bfloat16": 4e-5, "int8": 9e-4, "int4": 4e-2}  # nats per code
EMBEDDING, GROUP = "model.embed_tokens.weight", 32


def log_probs(engine, pictures):
    """float64 [positions of all pictures, codes]."""
    logits = np.concatenate([engine.score_from_ids(ids, codes) for ids, codes in pictures]).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.fixture(scope="module")
def pictures_and_expected():
    """[(prompt ids, codes drawn in float32)] and the float32 log-probabilities of every code at every position."""
    with Engine.from_pretrained("default", dtype="float32", threads=1) as engine:
        pictures = [
            (engine._text.encode_prompt(prompt, engine.defaults), engine.generate(prompt, seed=seed)[0].tokens)
            for seed, prompt in enumerate(PROMPTS)
        ]
        return pictures, log_probs(engine, pictures)


def mean_kl(engine, pictures_and_expected):
    pictures, expected = pictures_and_expected
    return (np.exp(expected) * (expected - log_probs(engine, pictures))).sum(axis=1).mean()


def engine_with(change, dtype):
    """The embedded model with `change(matrix)` in place of every matrix of its products."""
    checkpoint = load_checkpoint(resolve("default"))
    weights = {name: np.array(to_float32(t.data, t.dtype)) for name, t in checkpoint.tensors.items()}
    weights[LM_HEAD] = weights[EMBEDDING]
    for name, weight in weights.items():
        if weight.ndim == 2 and name != EMBEDDING:
            weights[name] = np.ascontiguousarray(change(weight), np.float32)
    model = replace(checkpoint.model, tie_word_embeddings=False)
    return Engine.from_weights(model, weights, defaults=checkpoint.defaults, dtype=dtype, threads=1)


def with_one_scale_a_row(weight):
    scales = np.abs(weight).max(axis=1, keepdims=True) / 7
    return np.rint(weight / np.where(scales == 0, 1, scales)) * scales


def without_the_last_group(weight):
    return np.pad(weight[:, :-GROUP], ((0, 0), (0, GROUP)))


def with_a_wrong_scale(weight):
    """Every eighth group half as large again."""
    weight = weight.copy()
    weight.reshape(-1, GROUP)[::8] *= 1.5
    return weight


def test_distributions_stay_close_to_float32_and_closer_with_more_bits(pictures_and_expected):
    found = {}
    for dtype in MEAN_KL_BOUNDS:
        with Engine.from_pretrained("default", dtype=dtype, threads=1) as engine:
            found[dtype] = mean_kl(engine, pictures_and_expected)
    assert all(found[dtype] < bound for dtype, bound in MEAN_KL_BOUNDS.items()), found
    assert 0 <= found["bfloat16"] < found["int8"] < found["int4"], found


def test_same_weights_handed_over_are_as_close(pictures_and_expected):
    with engine_with(lambda weight: weight, "int8") as engine:
        assert mean_kl(engine, pictures_and_expected) < MEAN_KL_BOUNDS["int8"]


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("fault", [without_the_last_group, with_a_wrong_scale])
def test_bound_finds_a_fault(fault, dtype, pictures_and_expected):
    with engine_with(fault, dtype) as engine:
        assert mean_kl(engine, pictures_and_expected) > MEAN_KL_BOUNDS[dtype]


def test_bound_of_int4_finds_one_scale_a_row(pictures_and_expected):
    """Even in float32 arithmetic."""
    with engine_with(with_one_scale_a_row, "float32") as engine:
        assert mean_kl(engine, pictures_and_expected) > MEAN_KL_BOUNDS["int4"]
