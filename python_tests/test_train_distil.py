"""Guidance distillation: the student is pulled to the guided teacher, and to nothing else."""

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

import simplear_train.distil as module
from simplear_engine import Engine
from simplear_engine.errors import InvalidRequestError
from simplear_train.distil import DistilConfig, TeacherConfig, distil, kl_to_teacher
from simplear_train.loop import LoopConfig
from simplear_train.next_token import DataConfig, SourceConfig
from simplear_train.token_shards import ShardWriter

WORDS = ("a red apple", "two dogs", "a cat and a dog", "three books")


def random_case(rows=7, codes=11, width=5):
    torch.manual_seed(3)
    shapes = (rows, width), (codes, width), (rows, width), (codes, width)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=i < 2) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("top_k", [0, 1, 3, 11, 50])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_divergence_is_its_definition_in_any_chunks(monkeypatch, top_k, chunk):
    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk * 11)
    hidden, table, taught, taught_table = random_case()
    found = kl_to_teacher(hidden, table, taught, taught_table, top_k)
    found.backward()
    wanted = 0.0
    p, q = taught @ taught_table.T, (hidden @ table.T).log_softmax(-1)
    grads = [torch.zeros_like(hidden), torch.zeros_like(table)]
    for row in range(len(p)):
        kept = p[row].argsort(descending=True)[: top_k or None]
        probability = torch.zeros(len(table), dtype=torch.float64)
        probability[kept] = p[row, kept].softmax(0)
        wanted += sum(probability[v] * (probability[v].log() - q[row, v]) for v in kept)
        by_logit = (q[row].exp() - probability).detach()  # of KL, by the student's logits
        grads[0][row] += by_logit @ table.detach()
        grads[1] += by_logit[:, None] * hidden.detach()[row]
    # Logits are float32 inside.
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    for parameter, grad in zip((hidden, table), grads):
        assert torch.allclose(parameter.grad, grad, rtol=1e-4, atol=1e-5)


def config_for(folder, **changes) -> DistilConfig:
    """On pictures that the default model drew itself."""
    if not (folder / "tokens").exists():
        with Engine.from_pretrained("default", threads=1) as engine, ShardWriter(folder / "tokens", 4096) as writer:
            for image in engine.generate(list(WORDS), num_images=4, seed=0):
                writer.add(image.tokens, [image.prompt])
    loop = LoopConfig(
        steps=6, learning_rate=2e-4, warmup_steps=1, compute_dtype="float32", log_every=1, validate_every=100,
        save_every=100,
    )  # fmt: skip
    data = DataConfig((SourceConfig(str(folder / "tokens")),), batch_size=16, micro_batch_size=16)
    data = replace(data, captions=replace(data.captions, drop=0.0))
    return replace(DistilConfig(data, teacher=TeacherConfig(4.0), loop=loop), **changes)


def divergences(run) -> list[float]:
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [row["kl"] for row in rows if "kl" in row]


def test_student_nears_its_guided_teacher_and_needs_no_guidance(tmp_path, one_thread):
    distil(config_for(tmp_path), tmp_path / "run", "cpu")
    found = divergences(tmp_path / "run")
    assert found[0] > 0.05 and found[-1] < 0.8 * found[0]
    with Engine.from_pretrained(tmp_path / "run" / "model", threads=1) as engine:
        assert engine.defaults.guidance_scale == 1
        plain = engine.generate("two dogs", seed=1)[0]
        assert np.array_equal(plain.tokens, engine.generate("two dogs", seed=1, guidance_scale=1)[0].tokens)


def test_divergence_of_held_back_pictures_is_what_training_on_them_begins_with(tmp_path, one_thread):
    config = config_for(tmp_path)
    config = replace(config, data=replace(config.data, validation=str(tmp_path / "tokens"), micro_batch_size=5))
    distil(replace(config, loop=replace(config.loop, steps=4, validate_every=3)), tmp_path / "run", "cpu")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    (held_back,) = [row["validation_kl"] for row in rows if row.get("step") == 3 and "validation_kl" in row]
    assert held_back == pytest.approx(divergences(tmp_path / "run")[3], rel=1e-4)


def test_without_guidance_there_is_nothing_to_learn(tmp_path, one_thread):
    distil(config_for(tmp_path, teacher=TeacherConfig(1.0)), tmp_path / "run", "cpu", stop_at=1)
    assert divergences(tmp_path / "run")[0] == pytest.approx(0, abs=1e-5)


def test_micro_batches_change_nothing(tmp_path, one_thread):
    whole = config_for(tmp_path)
    parts = replace(whole, data=replace(whole.data, micro_batch_size=5))
    for name, config in (("whole", whole), ("parts", parts)):
        distil(config, tmp_path / name, "cpu", stop_at=3)
    assert divergences(tmp_path / "parts") == pytest.approx(divergences(tmp_path / "whole"), rel=1e-4)


def test_what_it_cannot_do_is_refused(tmp_path):
    config = config_for(tmp_path)
    packed = replace(config, data=replace(config.data, pack_length=200))
    sharded = replace(config, loop=replace(config.loop, sharding="fsdp2"))
    for wrong, message in ((packed, "pack_length: expected 0"), (sharded, "sharding: expected")):
        with pytest.raises(InvalidRequestError, match=message):
            distil(wrong, tmp_path / "run", "cpu")
