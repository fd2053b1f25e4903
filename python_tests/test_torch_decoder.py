"""The plain decoder that the engine is compared with on a GPU computes what the engine computes."""

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from simplear_engine import Engine
from simplear_engine.config import ModelConfig
from simplear_engine.weights import weight_specs

CONFIG = ModelConfig(
    hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, rope_theta=1e4,
    rms_norm_eps=1e-6, vocab_size=84, tie_word_embeddings=True, max_position_embeddings=100, visual_offset=64,
)  # fmt: skip


@pytest.fixture
def decoder(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    from torch_decoder import TorchDecoder

    yield lambda weights, rows: TorchDecoder(CONFIG, weights, rows, length=40)
    sys.modules.pop("torch_decoder", None)


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {
        name: torch.ones(spec.shape) if "norm" in name else torch.randn(spec.shape) * 0.2
        for name, spec in weight_specs(CONFIG).items()
    }


def test_logits_are_the_engines(decoder, weights):
    codes = np.array([6, 7, 8, 16, 0])
    logits = decoder(weights, 2).read([3, 4, 5, *(codes[:4] + CONFIG.visual_offset)])
    with Engine.from_weights(CONFIG, weights, threads=1) as engine:
        expected = engine.score_from_ids([3, 4, 5], codes)[-1]
    np.testing.assert_allclose(logits.numpy(), np.stack([expected, expected]), atol=1e-4)


def test_drawn_codes_follow_the_guided_law(decoder, weights):
    pairs = 2000
    drawing = decoder(weights, 2 * pairs)
    drawing.scale.fill_(2.0)
    logits = drawing.read([3, 4])[0]
    # Both rows of a pair read the same prompt, so guidance changes nothing.
    drawing.position.fill_(1)
    with torch.no_grad():
        drawing.step()
    codes = drawing.token - CONFIG.visual_offset
    assert (codes[:pairs] == codes[pairs:]).all()
    p = torch.softmax(logits, 0).numpy() * pairs
    counts = np.bincount(codes[:pairs].numpy(), minlength=CONFIG.num_codes)
    likely = p > 5
    statistic = ((counts - p) ** 2 / p)[likely].sum()
    assert abs(statistic - likely.sum()) < 5 * np.sqrt(2 * likely.sum())
