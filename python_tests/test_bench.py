"""The microbenchmarks time nothing that is wrong."""

import dataclasses
import json

import numpy as np
import pytest

from simplear_engine import _C, bench
from simplear_engine.kernels.op import all_ops


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(bench, "READ_VALUES", 1 << 12)


def test_row_holds_what_the_table_shows(quick, capsys):
    assert bench.main(["op", "embed", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["op"] == "embed" and row["impl"] == _C.chosen_isa()
    assert 0 < row["p10_us"] <= row["us"] <= row["p90_us"] and row["gb_s"] > 0 and row["read_share"] > 0


def test_wrong_implementation_is_reported_and_not_timed(quick, monkeypatch, capsys):
    op = all_ops()["embed"]
    broken = dataclasses.replace(op, reference=lambda **args: {"hidden": np.zeros(1, np.float32)})
    monkeypatch.setattr(bench, "all_ops", lambda: {"embed": broken})
    assert bench.main(["op", "embed"]) == 1
    assert "WRONG, not timed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["op", "nothing"], "op nothing: expected all or one of"),
        (["op", "embed", "--impl", "neon"], "no implementation named neon"),
        (["op", "embed", "--case", "N77777"], "no case matches 'N77777'"),
    ],
)
def test_wrong_name_is_one_clear_line(arguments, message, capsys):
    assert bench.main(arguments) == 2
    assert message in capsys.readouterr().err
