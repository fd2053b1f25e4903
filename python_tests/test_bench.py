"""The command line of the benchmarks: single ops, arguments, what is saved and drawn."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest

from simplear_engine import _C
from simplear_engine.bench import cli, ops, timing
from simplear_engine.kernels.op import all_ops


def test_row_holds_what_the_table_shows(quick_bench, capsys):
    assert cli.main(["op", "rope_append", "--json", "--threads", "1"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    (row,) = found["rows"]
    assert row["op"] == "rope_append" and row["impl"] == _C.chosen_isa()
    assert 0 < row["p10_us"] <= row["us"] <= row["p90_us"] and row["gb_s"] > 0
    assert row["floor_share"] == pytest.approx(row["floor_us"] / row["us"]) and row["floor_of"] == "reading"
    assert row["floor_us"] > found["roofs"]["barrier"]["us"]
    assert f"{row['us']:.1f} us" in printed.err and f"{found['roofs']['read_gb_s']:.1f} GB/s" in printed.err
    assert found["machine"]["threads"] == 1 and set(found["key"]) < row.keys() and found["metric"] in row


def test_wrong_implementation_is_reported_and_not_timed(quick_bench, monkeypatch, capsys):
    known = all_ops()
    right = known["rope_append"].reference
    broken = dataclasses.replace(
        known["rope_append"], reference=lambda **given: {name: 2 * value for name, value in right(**given).items()}
    )
    monkeypatch.setattr(ops, "all_ops", lambda: {**known, "rope_append": broken})
    assert cli.main(["op", "rope_append", "--threads", "1", "--json"]) == 1
    printed = capsys.readouterr()
    assert "WRONG, not timed" in printed.err and "us" not in json.loads(printed.out)["rows"][0]


def test_every_run_of_an_op_that_moves_on_gets_the_same_inputs(quick_bench, monkeypatch, capsys):
    seen = []

    def recorded(trial, pool):
        if trial is None:
            return SimpleNamespace(run=lambda: None)
        return SimpleNamespace(run=lambda: (seen.append(trial._args["codes"].numpy().copy()), trial.run()))

    monkeypatch.setattr(ops, "Recorded", recorded)
    assert cli.main(["op", "verify_drafts", "--case", "W1-", "--threads", "1"]) == 0
    assert len(seen) > 2 and all((codes == seen[0]).all() for codes in seen)


def test_cases_far_from_their_floor_are_named_at_the_end(quick_bench, monkeypatch, capsys):
    monkeypatch.setattr(ops, "FAR_FROM_FLOOR", 1e9)
    assert cli.main(["op", "fsq_decode", "--threads", "1"]) == 0
    *_, count, row = capsys.readouterr().out.splitlines()
    assert count.startswith("1 of 1 measurements") and "fsq_decode" in row and "floor" in row


def test_every_instruction_set_of_the_processor_can_be_asked_for(quick_bench, capsys):
    assert cli.main(["op", "gumbel_noise", "--isa", "all", "--threads", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["impl"] for row in rows] == _C.available_isas()


def test_dtype_keeps_the_cases_that_choose_it():
    op = all_ops()["linear"]
    chosen = ops.cases_of(op, "N2-", "float32")
    assert chosen and all("float32" in case.dtypes.values() and "N2-" in case.id for case in chosen)
    assert {case.dtypes["weight"] for case in ops.cases_of(op, None, "bfloat16")} >= {"bfloat16"}


def test_list_names_every_op(capsys):
    assert cli.main(["list"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == set(all_ops())
    assert cli.main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["op"]: len(row["cases"]) for row in rows} == {op.name: len(op.bench_cases) for op in all_ops().values()}


@pytest.mark.skipif(bool(_C.cuda_devices()[0]), reason="there is a GPU")
def test_triton_is_not_timed_without_a_gpu(capsys):
    assert cli.main(["op", "rope_append", "--impl", "triton"]) == 2
    assert "op rope_append: Triton needs a GPU to be timed, and there is none here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["op", "nothing"], "op nothing: expected all or one of"),
        (["op", "rope_append", "--isa", "neon"], "no implementation named neon"),
        (["op", "rope_append", "--case", "N77777"], "no case of rope_append matches --case 'N77777'"),
        (["op", "rope_append", "--dtype", "float8"], "--dtype: expected some of"),
        (["op", "rope_append", "--threads", "0"], "threads: expected an integer in 1..1024, got 0"),
        (["op", "rope_append", "--threads", "two"], "argument --threads: invalid int value: 'two'"),
        (["step", "--rows", "2,x"], "--rows: expected integers, comma-separated, in 1..4096, got '2,x'"),
        (["step", "--window", "65"], "--window: expected integers, comma-separated, in 1..64, got '65'"),
        (["step", "--rows", "2", "--window", "2"], "--rows, --window: expected one of the two"),
        (["step", "--context", "0"], "--context: expected integers"),
        (["step", "--dtype", "float64"], "--dtype: expected some of float32, bfloat16"),
        (["step", "--model", "default", "--size", "tiny"], "--size, --model: expected one of the two"),
        (["step", "--model", "default", "--context", "100000"], "longer than the model's"),
        (["image", "--model", "nowhere"], "nowhere"),
        (["image", "--batch", "0"], "--batch: expected integers"),
        (["serve", "--rate", "-1"], "--rate: expected a number above 0, got '-1'"),
        (["serve", "--clients", "many"], "--clients: expected integers"),
        (["op", "rope_append", "--against", "no-such-revision"], "no git revision named 'no-such-revision'"),
        (["op", "rope_append", "--against", "HEAD", "--pairs", "0"], "--pairs: expected an integer in 1..100"),
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
    ],
)
def test_bad_argument_is_one_clear_line(arguments, message, capsys):
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize("command", ["op", "step", "image", "serve"])
def test_help_teaches_by_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"python -m simplear_engine.bench {command}" in capsys.readouterr().out


def test_saved_documents_follow_each_other_in_one_file(quick_bench, tmp_path, capsys):
    for _ in range(2):
        assert cli.main(["op", "rope_append", "--threads", "1", "--save", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert path.name.endswith("-op.jsonl") and first["machine"]["date"][:10] in path.name
    assert first["rows"][0]["case"] == second["rows"][0]["case"]


def test_missing_matplotlib_is_said_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(ops, "run", None)
    assert cli.main(["op", "rope_append", "--plot"]) == 2
    assert "pip install 'simplear-engine[bench]'" in capsys.readouterr().err


def test_roofline_is_drawn(quick_bench, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert cli.main(["op", "rope_append", "--threads", "1", "--plot", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-op-roofline.png") and path.read_bytes().startswith(b"\x89PNG")


def test_first_run_of_a_turn_does_not_count():
    calls = []
    times = timing.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, seconds=0)
    assert calls == ["a", "a", "b", "b"] * 2
    assert len(times["a"].seconds) == 2


def test_percentiles_are_runs_that_happened():
    times = timing.Times.of([5, 1, 4, 2, 3])
    assert (times.p10, times.median, times.p90, times.percentile(99)) == (1, 3, 5, 5)
