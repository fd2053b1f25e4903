"""The attention kernels that ours is compared with on a GPU get the same problem, and wrong results are not timed."""

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import attention_peers

    yield attention_peers
    sys.modules.pop("attention_peers", None)


def test_torch_attends_as_the_op_does(peers):
    for case in peers.cases():
        p = peers.problem(case, "cpu")
        peers.check(peers.torch_attention(p), p)


def test_another_scale_is_found(peers):
    p = peers.problem(peers.cases()[0], "cpu")
    other = peers.Problem(p.q, p.k, p.v, 2 * p.scale, p.wanted)
    with pytest.raises(ValueError, match="deviations from the reference"):
        peers.check(peers.torch_attention(other), p)


@pytest.mark.parametrize("size", [16, 256])
def test_pages_hold_the_keys_in_order(peers, size):
    p = peers.problem(peers.cases()[1], "cpu")  # 900 keys
    k, v, table = peers.pages_of(p, size)
    assert k.shape[1:] == (size, *p.k.shape[2:])
    for paged, contiguous in ((k, p.k), (v, p.v)):
        gathered = paged[table.long()].flatten(1, 2)[:, : contiguous.shape[1]]
        assert torch.equal(gathered, contiguous)


def test_case_ids_are_those_of_the_ops_own_table(peers):
    from simplear_engine.kernels.paged_attention import OP
    from simplear_engine.testing.device_trial import cases_of

    assert {case.id for case in peers.cases()} <= {case.id for case in cases_of(OP.bench_cases)}
