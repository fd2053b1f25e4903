"""Pictures from cold processes, pictures under load, and two revisions against each other."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from simplear_engine import Engine
from simplear_engine.bench import against, cli, image, serve
from simplear_engine.errors import InternalError, UnsupportedError


def test_phases_of_a_cold_picture_add_up(tiny_checkpoint, capsys):
    command = ["image", "--model", str(tiny_checkpoint), "--batch", "1,3", "--rounds", "1", "--threads", "1", "--json"]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    one, three = json.loads(printed.out)["rows"]
    cold = {phase: seconds["s"] for phase, seconds in one["cold_s"].items()}
    assert cold.pop("first picture") == pytest.approx(sum(cold.values()))
    assert all(cold[phase] > 0 for phase in ("start", "import", "load", "prompt", "codes", "pixels"))
    assert (one["batch"], three["batch"], one["times_alone"]) == (1, 3, 1)
    assert three["images_per_s"] == pytest.approx(1 / three["s"]) and f"{three['s']:.4f} s a picture" in printed.err


def test_another_picture_in_another_process_is_an_error():
    answers = [{"digests": {"0": "one"}, "seconds_per_image": {"1": 1.0}}, {"digests": {"0": "two"}}]
    with pytest.raises(InternalError, match="another picture in another process"):
        image.rows_of("default", answers)


def test_fault_of_the_cold_process_is_one_line(tmp_path, capsys):
    assert cli.main(["image", "--model", str(tmp_path), "--rounds", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: image: ") and "holds neither model.safetensors nor" in line


def test_loads_report_rates_and_latencies(tiny_checkpoint, capsys):
    command = ["serve", "--model", str(tiny_checkpoint), "--clients", "1,3", "--rate", "200", "--pictures", "7"]
    assert cli.main([*command, "--threads", "1", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [(row["load"], row["clients"], row["rate"]) for row in found["rows"]] == [
        ("closed", 1, None), ("closed", 3, None), ("poisson", None, 200.0),
    ]  # fmt: skip
    for row in found["rows"]:
        assert row["pictures"] == 7 and 0 < row["latency_s"]["p50"] <= row["latency_s"]["p99"]
        assert row["images_per_s"] == pytest.approx(1 / row["s_per_image"])
        assert f"{row['images_per_s']:.2f}" in printed.err
    assert found["pixels"]


def test_picture_that_differs_under_load_is_an_error(tiny_checkpoint):
    with Engine.from_pretrained(tiny_checkpoint, threads=1) as engine:
        load = serve.Load(engine, with_pixels=False)
        load._alone[2] = SimpleNamespace(tokens=np.zeros((4, 4), np.int32))
        with pytest.raises(InternalError, match="another picture than alone"):
            load.closed(2, 4)


def test_options_of_this_side_are_not_passed_on():
    given = ["op", "linear", "--against", "HEAD~1", "--json", "--case", "N2", "--save", "--pairs=5", "--plot", "out"]
    assert against.passed_on(given) == ["op", "linear", "--case", "N2"]


def test_two_sides_take_turns_and_their_ratio_is_told(monkeypatch, capsys):
    document = {"key": ["op"], "metric": "us", "machine": dict.fromkeys(("cpu", "threads", "isa", "load_before"), "x")}
    document |= {"benchmark": "op"}
    document["machine"] |= {"revision": "abc"}
    asked = []

    def run(python, command, name):
        asked.append(name)
        rows = [{"op": "a", "us": 10.0 if name == "this" else 20.0 + len(asked)}, {"op": "b", "us": 1.0}]
        return {**document, "rows": rows if name == "this" else rows[:1]}

    monkeypatch.setattr(against, "installed", lambda revision: Path(sys.executable))
    monkeypatch.setattr(against, "document_of", run)
    assert cli.main(["op", "all", "--against", "HEAD~1", "--pairs", "2", "--json"]) == 0
    assert asked == ["this", "HEAD~1", "HEAD~1", "this"]
    printed = capsys.readouterr()
    row, missing = json.loads(printed.out)["rows"]
    assert row["ratio"] == pytest.approx(2.25) and (row["lowest_ratio"], row["highest_ratio"]) == (2.2, 2.3)
    assert missing["missing"] and "not timed on both sides" in printed.err


def test_revision_whose_bench_knows_no_such_command_is_one_clear_line():
    with pytest.raises(UnsupportedError, match="revision old: `bench fly` gave no numbers: error: .*invalid choice"):
        against.document_of(Path(sys.executable), ["fly"], "old")
