"""Codes are drawn from the distribution that the logits state, with drafts and without.

The network's embedding is the same for every token, so every position has the same logits and codes are independent: how
often each occurs, and each pair of neighbours, is then known exactly.
"""

import numpy as np
import pytest

from simplear_engine import Engine, _C
from simplear_engine.config import ModelConfig
from simplear_engine.kernels.gumbel_noise.noise import gumbel, philox
from simplear_engine.kernels.op import all_ops
from simplear_engine.weights import weight_specs

NUM_CODES, SIDE = 12, 20
CONFIG = ModelConfig(
    hidden_size=16, intermediate_size=16, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16, rope_theta=1e4,
    rms_norm_eps=1e-6, vocab_size=8 + NUM_CODES, tie_word_embeddings=False, max_position_embeddings=SIDE * SIDE + 8,
    visual_offset=8,
)  # fmt: skip


def make_engine():
    rng = np.random.default_rng(0)
    weights = {name: np.zeros(spec.shape, np.float32) for name, spec in weight_specs(CONFIG).items()}
    weights["model.embed_tokens.weight"][:] = rng.standard_normal(16)
    weights["model.norm.weight"][:] = 1
    weights["lm_head.weight"][:] = rng.standard_normal(weights["lm_head.weight"].shape) * 0.25
    return Engine.from_weights(CONFIG, weights, threads=1, max_pairs=32)


def chi_squared(counts, expected):
    """Standard deviations by which the statistic exceeds its mean."""
    statistic, freedom = ((counts - expected) ** 2 / expected).sum(), counts.size - 1
    return (statistic - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "num_images, options",
    [
        (2500, {"speculation": None}),
        (2500, {"speculation": "jacobi", "draft_window": 8, "draft_source": "left"}),
        (250, {"speculation": "jacobi", "draft_window": 64, "draft_source": "marginal"}),
        (250, {"speculation": "auto"}),
    ],
)
def test_codes_follow_the_stated_distribution(num_images, options):
    with make_engine() as engine:
        logits = engine.score_from_ids([1], np.zeros(1, np.int64))[0].astype(np.float64)
        images = engine.generate_from_ids(
            [1], height=16 * SIDE, width=16 * SIDE, num_images=num_images, guidance_scale=1, seed=5, **options
        )
    codes = np.stack([image.tokens.reshape(-1) for image in images])
    p = np.exp(logits) / np.exp(logits).sum()
    assert p.min() > 0.001 and p.max() > 3 * p.min()
    assert chi_squared(np.bincount(codes.reshape(-1), minlength=NUM_CODES), codes.size * p) < 5
    # Neighbours, each code in one pair only, are independent.
    pairs = codes[:, ::2] * NUM_CODES + codes[:, 1::2]
    assert (
        chi_squared(np.bincount(pairs.reshape(-1), minlength=NUM_CODES**2), pairs.size * np.outer(p, p).reshape(-1)) < 5
    )


def test_noise_next_to_its_ends_is_the_reference_bit_for_bit():
    positions, codes = 300, 4096
    words = np.stack([philox(11, np.arange(codes // 4), position).T.reshape(-1) for position in range(positions)])
    op, pool = all_ops()["gumbel_noise"], _C.ThreadPool(1)
    # The largest and the smallest of a million words: u within a millionth of 1 and of 0.
    for at in (words.argmax(), words.argmin()):
        position, code = divmod(int(at), codes)
        noise = _C.Tensor.zeros([1, codes], "float32")
        seed, place = np.array([11], np.uint64), np.array([position], np.int32)
        op.run(
            _C.chosen_isa(),
            pool,
            {"seed": _C.Tensor.from_numpy(seed), "position": _C.Tensor.from_numpy(place), "noise": noise},
        )
        assert noise.numpy()[0, code] == gumbel(words[position])[code]
        assert np.isfinite(noise.numpy()).all() and abs(noise.numpy()[0, code]) > 2
