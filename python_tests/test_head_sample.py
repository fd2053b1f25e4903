"""Draws of the fused head where they are hard: at the ends of the temperature scale, where nearly all codes, or none,
could win, and with filters among logits that are equal, nearly equal or far away."""

import numpy as np
import pytest

from simplear_engine import _C
from simplear_engine.kernels.gumbel_noise.noise import gumbel_noise
from simplear_engine.kernels.head_sample import allowed
from simplear_engine.kernels.op import all_ops
from simplear_engine.kernels.packed_weight import pack_array

NUM_DRAWS, NUM_CODES, WIDTH = 100, 2999, 32
SEEDS = np.random.default_rng(5).integers(0, 2**64, NUM_DRAWS, dtype=np.uint64)


@pytest.fixture(scope="module")
def pool():
    return _C.ThreadPool(2)


@pytest.fixture(scope="module")
def noise():
    return np.stack([gumbel_noise(int(seed), i, NUM_CODES) for i, seed in enumerate(SEEDS)])


def draw(isa, pool, hidden, weight, temperature, top_k, top_p=1.0):
    """(tokens of NUM_DRAWS draws from one row, their log-probabilities, the row's logits as the op stores them for
    scoring)."""
    everything = np.zeros(NUM_DRAWS, np.int32)
    inputs = {
        "hidden": np.stack([hidden, hidden]),
        "rows": np.array([0, 1], np.int32),
        "norm_weight": np.ones(WIDTH, np.float32),
        "cond_row": everything,
        "uncond_row": everything - 1,
        "guidance_scale": np.ones(NUM_DRAWS, np.float32),
        "temperature": np.full(NUM_DRAWS, temperature, np.float32),
        "top_k": everything + top_k,
        "top_p": np.full(NUM_DRAWS, top_p, np.float32),
        "seed": SEEDS,
        "position": np.arange(NUM_DRAWS, dtype=np.int32),
        "slot": everything,
        "logits": np.zeros((2, NUM_CODES), np.float32),
        "guided": np.zeros((NUM_DRAWS, NUM_CODES), np.float32),
        "token": everything.copy(),
        "log_prob": np.zeros(NUM_DRAWS, np.float32),
        "last_code": np.zeros(1, np.int32),
    }
    tensors = {name: _C.Tensor.from_numpy(array) for name, array in inputs.items()}
    fields = all_ops()["head_sample"].fields(
        tensors | {"weight": pack_array(weight, "float32", pool)}, {"eps": 1e-6}, isa
    )
    _C.run_op("head_sample", isa, fields, pool)
    # The second row is drawn from by nobody, so its logits, equal to the first one's, are stored.
    return inputs["token"], inputs["log_prob"], inputs["logits"][1]


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 0.03, 0.3, 1, 3, 30, 1e4])
@pytest.mark.parametrize("offset", [0, 1e4])
def test_the_best_noisy_code_wins_at_any_temperature(isa, pool, noise, temperature, offset):
    rng = np.random.default_rng(int(temperature * 1e6))
    hidden = rng.standard_normal(WIDTH).astype(np.float32)
    weight = rng.standard_normal((NUM_CODES, WIDTH)).astype(np.float32)
    # Logits that are all large: an offset that every row of the head adds.
    weight[:, 0] += np.float32(offset) / (hidden[0] / np.sqrt(np.mean(hidden.astype(np.float64) ** 2)))
    weight[rng.integers(NUM_CODES, size=500)] = weight[0]  # ties before noise
    for top_k in (NUM_CODES, 40):
        tokens, _, logits = draw(isa, pool, hidden, weight, temperature, top_k)
        z = logits / np.float32(temperature)
        z = np.where(z >= np.sort(z)[-top_k], z, -np.inf)
        assert (tokens == np.argmax(z + noise, axis=1)).all()


def hard_logits(kind, rng):
    some = rng.integers(NUM_CODES, size=NUM_CODES // 3)
    logits = rng.standard_normal(NUM_CODES).astype(np.float32)
    if kind == "one value":
        logits[:] = -1.25
    elif kind == "few values":
        logits = np.round(logits)
    elif kind == "next to each other":
        logits = np.float32(3) + rng.integers(0, 50, NUM_CODES).astype(np.float32) * np.float32(2.4e-7)
    elif kind == "far away":
        logits[some] *= np.float32(1e30)
        logits[rng.integers(NUM_CODES, size=9)] = 2e30
    elif kind == "all sizes":
        logits = logits * 10 ** rng.uniform(-40, 1, NUM_CODES).astype(np.float32)
        logits[some] = 0
    return logits


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize(
    "kind", ["one value", "few values", "next to each other", "far away", "all sizes", "as they come"]
)
def test_filters_leave_exactly_the_codes_that_they_should(isa, pool, noise, kind):
    hidden, weight = np.zeros(WIDTH, np.float32), np.zeros((NUM_CODES, WIDTH), np.float32)
    hidden[0] = 1
    weight[:, 0] = hard_logits(kind, np.random.default_rng(3)) / np.float32(np.sqrt(WIDTH))
    for top_k in (1, 64, 65, 700, NUM_CODES - 1, NUM_CODES):
        for top_p in (0.03, 0.5, 0.97, 1.0):
            tokens, log_probs, z = draw(isa, pool, hidden, weight, 1.0, top_k, top_p)
            kept = np.where(allowed(z, top_k, np.float32(top_p)), z, -np.inf)
            assert (tokens == np.argmax(kept + noise, axis=1)).all(), (top_k, top_p)
            exact = kept.astype(np.float64) - kept.max()
            np.testing.assert_allclose(log_probs, exact[tokens] - np.log(np.exp(exact).sum()), rtol=1e-6, atol=3e-6)
