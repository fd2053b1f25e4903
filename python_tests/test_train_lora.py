"""Adapters are trained alone, drawn with while they are, and loaded by peft afterwards."""

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from simplear_train.grpo import grpo
from simplear_train.lora import LoraConfig
from simplear_train.model_folder import load_model
from test_train_grpo import config_for


def test_adapters_reach_rollouts_the_saved_model_and_peft(tmp_path, tiny_checkpoint):
    config = replace(config_for(tmp_path, tiny_checkpoint), lora=LoraConfig(rank=3, alpha=5.0))
    folder = grpo(config, tmp_path / "run", "cpu")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    # The engine draws with merged weights: after three updates it still agrees with the trainer.
    assert max(row["mismatch_max"] for row in rows if "mismatch_max" in row) < 1e-4
    assert rows[-1]["kl"] > 0

    start, trained = load_model(tiny_checkpoint), load_model(folder)
    changed = {
        n for n, p in start.named_parameters() if not torch.allclose(p, dict(trained.named_parameters())[n], atol=2e-2)
    }
    ids = torch.randint(0, start.config.vocab_size, (2, 11))
    base = transformers.Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, folder / "adapter")
    with torch.no_grad():
        logits = theirs(ids).logits
        assert not torch.allclose(logits, start(ids), atol=1e-2)
        # The folder is bfloat16, the adapter float32.
        torch.testing.assert_close(logits, trained(ids), rtol=0.05, atol=0.05)
    assert all("_proj" in name for name in changed)


def test_dropout_of_adapters_disturbs_neither_old_log_probs_nor_pictures(tmp_path, tiny_checkpoint):
    config = replace(config_for(tmp_path, tiny_checkpoint), lora=LoraConfig(rank=3, alpha=40.0, dropout=0.5), updates=2)
    grpo(config, tmp_path / "run", "cpu")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    # Both are of the whole model; what is dropped changes the updates alone.
    assert max(row["mismatch_max"] for row in rows if "mismatch_max" in row) < 1e-4
    assert rows[-1]["kl"] > 0
