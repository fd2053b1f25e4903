"""A step that is timed is the step that pictures take, whatever its rows and contexts."""

import json

import numpy as np
import pytest

from simplear_engine import _C, Engine
from simplear_engine.backend import DTYPES
from simplear_engine.bench import cli, shapes, step_rig
from simplear_engine.bench.shapes import Shape, with_window
from simplear_engine.bench.step_rig import StepRig
from simplear_engine.errors import InternalError

SHAPES = [Shape(1, 1), Shape(2, 17), Shape(5, 40), Shape(8, 16), with_window(4, 30)]


@pytest.fixture(scope="module", params=DTYPES)
def rig(request, tiny_checkpoint):
    rig = StepRig(tiny_checkpoint, request.param, SHAPES, threads=1)
    rig.check_greedy()
    rig.take_over(SHAPES)
    yield rig
    rig.close()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_the_same_alone_and_in_the_batch(rig, shape):
    rig.check_rows(shape)
    assert len(np.unique(rig.logits(shape), axis=0)) == shape.rows, "all rows compute something of their own"
    tokens, log_probs = rig.draws(shape)
    assert len(tokens) == shape.num_pairs * shape.window and (tokens >= 0).all() and np.isfinite(log_probs).all()


def test_gate_refuses_a_row_that_depends_on_its_neighbours(rig, monkeypatch):
    fill = shapes.fill_scoring

    def other_token(plan, shape, model, row=None):
        fill(plan, shape, model, row)
        plan.token_ids.numpy()[0] += row is not None

    monkeypatch.setattr(shapes, "fill_scoring", other_token)
    with pytest.raises(InternalError, match="row 0 alone has other logits than in the batch"):
        rig.check_rows(Shape(2, 17))


def test_gate_refuses_a_pair_that_draws_something_else_alone(rig, monkeypatch):
    fill = shapes.fill

    def other_seed(plan, shape, model, pairs=None):
        fill(plan, shape, model, pairs)
        plan.seed.numpy()[:4] += pairs == [2]

    monkeypatch.setattr(shapes, "fill", other_seed)
    with pytest.raises(InternalError, match="pair 2 alone draws other codes than in the batch"):
        rig.check_rows(Shape(5, 40))


def test_gate_refuses_logits_that_no_step_wrote(rig, monkeypatch):
    monkeypatch.setattr(rig.engine, "_program", _C.Program())
    with pytest.raises(InternalError, match="logits are not finite"):
        rig.check_rows(Shape(2, 17))


def test_gate_refuses_greedy_codes_that_scoring_does_not_prefer(rig, monkeypatch):
    monkeypatch.setattr(rig.engine, "score_from_ids", lambda ids, tokens: np.zeros((tokens.size, 3)))
    monkeypatch.setattr(rig.engine, "generate_from_ids", lambda *a, **k: [type("I", (), {"tokens": np.ones((4, 4))})])
    with pytest.raises(InternalError, match="does not give the greedy codes"):
        rig.check_greedy()


def test_first_row_of_a_window_is_the_row_without_drafts(rig):
    window, plan = with_window(4, 30), rig.engine._plan
    with_drafts = rig.logits(window)
    np.testing.assert_array_equal(rig.logits(window, 0)[0], with_drafts[0])
    rig.run(window)
    assert (plan.num_tokens, plan.num_seqs, plan.num_draws) == (8, 2, 4)
    np.testing.assert_array_equal(plan.positions.numpy()[:8], [29, 30, 31, 32] * 2)
    np.testing.assert_array_equal(plan.context_lens.numpy()[:2], [33, 33])


def test_plan_is_one_that_the_scheduler_could_have_made(rig):
    shape = Shape(5, 40)
    rig.run(shape)
    plan = rig.engine._plan
    assert (plan.num_tokens, plan.num_seqs, plan.num_logit_rows, plan.num_draws) == (5, 5, 5, 3)
    np.testing.assert_array_equal(plan.query_start_loc.numpy()[:6], range(6))
    np.testing.assert_array_equal(plan.uncond_row.numpy()[:3], [1, 3, -1])
    blocks = plan.block_table.numpy()[:5, :3]
    assert len(np.unique(blocks)) == 15, "sequences share no block"
    np.testing.assert_array_equal(plan.slot_mapping.numpy()[:5] // 16, blocks[:, 2])
    drawn = plan.token.numpy()[:3]
    assert ((drawn >= 0) & (drawn < rig.model.num_codes)).all()


def test_bytes_are_those_of_the_tensors(rig):
    m, bits = rig.model, {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4.5}[rig.dtype]
    query, kv = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
    elements = m.num_layers * m.hidden_size * (2 * query + 2 * kv + 3 * m.intermediate_size)
    elements += m.num_codes * m.hidden_size
    weights, keys = rig.bytes_read(Shape(2, 17))
    # Norms, biases, scales and padding come on top, and in a model as small as this they show.
    assert elements * bits / 8 <= weights < 1.2 * elements * bits / 8
    assert keys == 2 * 17 * m.num_layers * 2 * kv * (4 if rig.dtype == "float32" else 2)
    assert rig.flops(Shape(2, 17)) == 2 * 2 * elements + 4 * 2 * 17 * m.num_layers * query


def test_cache_that_is_read_was_written(rig):
    for tensor in step_rig.cache_tensors(rig.engine._cache):
        assert tensor.numpy()[: max(shape.num_blocks for shape in SHAPES)].any(axis=(1, 2, 3)).all()


def test_document_holds_what_the_table_shows(quick_bench, tiny_checkpoint, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    command = ["step", "--model", str(tiny_checkpoint), "--rows", "1,6", "--context", "5,20", "--rounds", "1"]
    command += ["--dtype", "bfloat16,float32", "--threads", "1", "--json", "--plot", str(tmp_path)]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    asked = [(d, r, c) for d in ("bfloat16", "float32") for c in (5, 20) for r in (1, 6)]
    assert [(row["dtype"], row["rows"], row["context"]) for row in found["rows"]] == asked
    for row in found["rows"]:
        assert f"{row['ms']:.3f}" in printed.err and row["ms_by_op"]["linear"] > 0
        assert row["model_ms"] == max(row["model_read_ms"], row["model_gemm_ms"])
        assert row["read_share"] == pytest.approx(row["model_read_ms"] / row["ms"])
    assert set(found["roofs"]["gemm_gflop_s"]) == {"bfloat16", "float32"} and found["roofs"]["barrier"]["us"] > 0
    assert len(list(tmp_path.glob("*-step-context-*.png"))) == 2


def test_an_engine_that_is_timed_serves_no_requests(tiny_checkpoint):
    with Engine.from_pretrained(tiny_checkpoint, threads=1) as engine:
        rig = StepRig(tiny_checkpoint, "float32", [Shape(2, 3)], threads=1)
        rig.take_over([Shape(2, 3)])
        rig.run(Shape(2, 3))
        rig.close()
        assert engine.generate("a red apple", seed=1)[0].tokens.shape == (4, 4)


def test_empty_calls_reach_every_thread():
    assert len(_C.ThreadPool(2).empty_calls(3)) == 3 and all(s > 0 for s in _C.ThreadPool(1).empty_calls(5))
