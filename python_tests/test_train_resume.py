"""A run that stops and goes on ends where an uninterrupted one ends."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from simplear_train.checkpoint import load_checkpoint, save_checkpoint
from simplear_train.presets import PRESETS


def assert_equal_states(first, second):
    for name, value in first["model"].items():
        torch.testing.assert_close(second["model"][name], value, rtol=0, atol=1e-6)
    for name, value in first["average"]["values"].items():
        torch.testing.assert_close(second["average"]["values"][name], value, rtol=0, atol=1e-6)


def test_resumed_pretraining_equals_an_uninterrupted_run(tmp_path):
    from simplear_train.pretrain import pretrain

    smoke = PRESETS["smoke"]
    preset = replace(
        smoke,
        model=replace(smoke.model, hidden_size=32, intermediate_size=32),
        pretrain=replace(smoke.pretrain, steps=12, batch_size=8, text_vocab_size=270),
        tokenizer=replace(smoke.tokenizer, levels=(4, 4)),
    )
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("validation", 8)):
        captions = [[f"picture {i}", f"number {i}"] for i in range(count)]
        words = np.frombuffer(str(captions).replace("'", '"').encode(), np.uint8)
        np.savez(
            tokens / f"{split}-0-of-1.npz", codes=rng.integers(0, 16, (count, 2, 2)).astype(np.uint16), captions=words
        )
    pretrain(preset, tokens, tmp_path / "straight", "cpu", resume=False)
    pretrain(preset, tokens, tmp_path / "halved", "cpu", resume=False, stop_at=7)
    pretrain(preset, tokens, tmp_path / "halved", "cpu", resume=True)
    straight, halved = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("straight", "halved"))
    assert straight["step"] == halved["step"] == 12
    assert_equal_states(straight, halved)


def test_resumed_tokenizer_training_equals_an_uninterrupted_run(tmp_path, monkeypatch):
    import simplear_train.train_tokenizer as module

    class NoiseScenes:
        """Stands in for rendered scenes: a picture is a function of seed and number, as there."""

        def __init__(self, seed, side, *_):
            self.seed, self.side = seed, side

        def picture(self, index):
            return np.random.default_rng((self.seed, index)).integers(0, 256, (self.side, self.side, 3), np.uint8)

    monkeypatch.setattr(module, "SceneMaker", NoiseScenes)
    smoke = PRESETS["smoke"]
    preset = replace(
        smoke, tokenizer=replace(smoke.tokenizer, image_side=32, channels=8, z_channels=8, steps=6, batch_size=2)
    )
    module.train_tokenizer(preset, tmp_path / "straight", tmp_path, "cpu", resume=False)
    module.train_tokenizer(preset, tmp_path / "halved", tmp_path, "cpu", resume=False, stop_at=2)
    module.train_tokenizer(preset, tmp_path / "halved", tmp_path, "cpu", resume=True)
    assert_equal_states(*(load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("straight", "halved")))


def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})

    class Unpicklable:
        def __reduce__(self):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"step": Unpicklable()})
    assert load_checkpoint(path) == {"step": 1}
