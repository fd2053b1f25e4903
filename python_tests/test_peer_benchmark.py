"""The comparison with other engines: its arithmetic and its protocol, without any other engine."""

import json
import math
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ECHO = """
import json, sys
from peers.protocol import answer, open_channel
channel = open_channel()
print("noise of a library")
answer(channel, {"ready": True})
for line in sys.stdin:
    steps = json.loads(line)["run"]
    if steps == 0:
        raise ValueError("expected a step")
    print("more noise")
    answer(channel, {"ms": [1.5] * steps, "tokens": None})
"""


@pytest.fixture(autouse=True)
def _peers_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def echo(tmp_path):
    from peers.protocol import Peer

    peer = Peer([sys.executable, "-c", ECHO], {"PYTHONPATH": str(BENCHMARKS)}, tmp_path, tmp_path / "log")
    yield peer
    peer.close()


def row(peer, rounds, **fields):
    from peers.table import Row

    return Row(peer, peer, "bf16", "bf16", rounds=rounds, **fields)


def test_a_peer_answers_in_its_turn_whatever_its_library_prints(echo):
    assert echo.wait_ready(30) == {"ready": True}
    assert echo.ask({"run": 2}, 30) == {"ms": [1.5, 1.5], "tokens": None}
    assert echo.ask({"run": 1}, 30)["ms"] == [1.5]


def test_a_peer_is_stopped_between_its_turns(echo):
    echo.wait_ready(30)
    status = Path(f"/proc/{echo._process.pid}/stat")
    if not status.exists():
        pytest.skip("needs /proc")
    for _ in range(1000):
        if status.read_text().rpartition(")")[2].split()[0] == "T":
            return
    pytest.fail("the process still runs")


def test_the_reason_of_a_peer_that_died_is_its_exception(echo):
    from peers.protocol import PeerError

    echo.wait_ready(30)
    with pytest.raises(PeerError, match="exit status 1: ValueError: expected a step"):
        echo.ask({"run": 0}, 30)


def test_a_peer_that_says_nothing_is_given_up(echo):
    from peers.protocol import PeerError

    echo.wait_ready(30)
    with pytest.raises(PeerError, match="no answer within"):
        echo._read(0.05)


def test_ratio_is_the_median_of_the_quotients_within_rounds():
    from peers.table import ratio

    slow_round_for_all = row("a", [20, 60, 22]), row("simplear", [10, 30, 20])
    assert ratio(*slow_round_for_all) == 2
    assert ratio(row("a", [math.nan, 30]), row("simplear", [10, 20])) == 1.5
    assert math.isnan(ratio(row("a", [20]), None))
    assert math.isnan(ratio(row("a", [math.nan]), row("simplear", [10])))


def test_a_round_counts_all_its_steps():
    from peers.table import round_ms

    assert round_ms([1, 1, 4]) == 2


def test_agreement_counts_leading_tokens_of_each_sequence():
    from peers.table import agreement

    assert agreement([[5, 6, 7, 8], [5, 0, 7]], [[5, 6, 7], [5, 6, 7]]) == [3, 1]
    assert agreement(None, [[1], [2]]) is None


def test_table_is_sorted_and_lists_what_did_not_run():
    from peers.table import to_json, to_markdown

    rows = [row("peer", [30, 34]), row("simplear", [10, 10]), row("floor", [8, 8]), row("broken", [], reason="no AVX")]
    text = to_markdown(rows)
    assert text.index("| floor") < text.index("| **simplear**") < text.index("| peer")
    assert "| 32.0 | 30.0..34.0 | 3.20 | 4.00 |" in text
    assert "- broken, bf16: no AVX" in text
    numbers = {entry["peer"]: entry for entry in json.loads(json.dumps(to_json(rows)))}
    assert numbers["peer"]["ratio_to_ours"] == 3.2 and numbers["broken"]["ms_per_step"] is None


def test_table_replaces_only_what_stands_between_the_markers():
    from peers.table import BEGIN, END, insert

    page = f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe end.\n"
    once = insert(page, "new\n")
    assert once == f"# Title\n\n{BEGIN}\n\nnew\n\n{END}\n\nThe end.\n"
    assert insert(once, "new") == once
    with pytest.raises(ValueError, match="expected the lines"):
        insert("# Title\n", "new")


@pytest.mark.parametrize(
    ("result", "fault"),
    [
        ({"ms": [1.0], "tokens": None}, "expected 2 steps, got 1"),
        ({"ms": [1.0, math.nan], "tokens": None}, "finite"),
        ({"ms": [1.0, 1.0], "tokens": [[1, 2, 3], [1, 2]]}, "expected 3 in each sequence, got 2"),
        ({"ms": [1.0, 1.0], "tokens": [[1, 2, 64000]]}, "expected numbers in"),
    ],
)
def test_a_run_that_did_not_do_the_work_is_refused(result, fault):
    from peers.peer import check_run

    with pytest.raises(ValueError, match=fault):
        check_run(result, 2)


def test_every_peer_can_be_read_without_its_library():
    import importlib

    for name in ("llama_cpp", "onnxruntime_genai", "openvino", "transformers_compile", "ctranslate2", "floor"):
        module = importlib.import_module(f"peers.{name}")
        assert module.VARIANTS and all("==" in package for package in module.REQUIREMENTS or ())
