"""Draws of the fused head at the ends of the temperature scale, where nearly all codes, or none, could win."""

import numpy as np
import pytest

from simplear_engine import _C
from simplear_engine.kernels.gumbel_noise.noise import gumbel_noise
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


def draw(isa, pool, hidden, weight, temperature, top_k):
    """(tokens of NUM_DRAWS draws from one row, the row's logits as the op stores them for scoring)."""
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
        "top_p": np.ones(NUM_DRAWS, np.float32),
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
    return inputs["token"], inputs["logits"][1]


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
        tokens, logits = draw(isa, pool, hidden, weight, temperature, top_k)
        z = logits / np.float32(temperature)
        z = np.where(z >= np.sort(z)[-top_k], z, -np.inf)
        assert (tokens == np.argmax(z + noise, axis=1)).all()
