"""compare(): a kernel from outside the tree is checked, then timed."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from simplear_engine.bench import Case, compare
from simplear_engine.errors import InvalidRequestError
from simplear_engine.kernels.op import all_ops

FLOATS = {"x": "float32", "weight": "float32", "y": "float32"}
CASE = Case({"N": 3, "M": 5, "K": 37}, FLOATS, {"accumulate": 0})
DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarking.md"
WRONG = "\nvoid wrong(const float* x, const float* weight, const float* bias, float* y) { y[0] = 1; }\n"


def blocks(language):
    """The pieces of code that the documentation shows."""
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


def linear(x, weight, bias, y, **scalars):
    y[:] = x @ weight.T + bias


def test_right_kernel_is_timed_beside_ours(quick_bench, capsys):
    found = compare("linear", linear, case=CASE, threads=1, seconds=0)
    assert len(found.ours.seconds) == len(found.mine.seconds) == 2
    assert found.ratio == found.ours.median / found.mine.median > 0
    assert capsys.readouterr().out.strip() == str(found)


@pytest.mark.parametrize("fault", ["does nothing", "is off by a little", "writes to its input"])
def test_wrong_kernel_is_refused_and_not_timed(quick_bench, fault):
    calls = []

    def wrong(x, weight, bias, y, **scalars):
        calls.append(1)
        if fault != "does nothing":
            linear(x, weight, bias, y)
        if fault == "is off by a little":
            y[1, 3] += 0.01
        elif fault == "writes to its input":
            x[0, 0] += 1

    with pytest.raises(InvalidRequestError, match="your function is wrong, not timed"):
        compare("linear", wrong, case=CASE, threads=1, seconds=0)
    assert len(calls) == 1


def test_weights_come_as_rows_and_bfloat16_as_bits(quick_bench):
    seen = {}

    def mine(x, weight, bias, y, **scalars):
        seen.update(x=x, weight=weight, scalars=scalars)
        widened = [(bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for bits in (x, weight)]
        y[:] = widened[0] @ widened[1].T + bias

    compare("linear", mine, case="N2-M64-K64-x=bfloat16-weight=bfloat16-y=float32-accumulate=0", threads=1, seconds=0)
    assert seen["weight"].shape == (64, 64) and seen["x"].dtype == seen["weight"].dtype == np.uint16
    assert seen["scalars"]["accumulate"] == 0


def test_tensors_can_be_had_in_place_of_arrays(quick_bench):
    def mine(x, weight, bias, y, **scalars):
        assert (x.dtype, weight.shape) == ("float32", (5, 37))
        linear(x.numpy(), weight.numpy(), bias.numpy(), y.numpy())

    compare("linear", mine, case=CASE, threads=1, seconds=0, tensors=True)


def test_op_that_moves_on_gets_its_first_inputs_every_time(quick_bench):
    declared, seen = all_ops()["verify_drafts"], []

    def mine(**given):
        seen.append(given["codes"].copy())
        for name, value in declared.reference(**given).items():
            given[name][:] = value

    compare("verify_drafts", mine, threads=1, seconds=0)
    assert len(seen) > 2 and all((codes == seen[0]).all() for codes in seen)


@pytest.mark.parametrize(
    "op, case, message", [("linea", None, "op linea: expected one of"), ("linear", "N77", "no case matches 'N77'")]
)
def test_wrong_name_is_one_clear_line(op, case, message):
    with pytest.raises(InvalidRequestError, match=message):
        compare(op, linear, case=case)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("mine")
    (source,) = blocks("c")
    (folder / "mine.c").write_text(source + WRONG)
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(folder / "mine.so"), str(folder / "mine.c"), "-lm"]
    subprocess.run(command, check=True)
    return folder / "mine.so"


def test_documented_python_kernel_runs(quick_bench, capsys):
    exec(blocks("python")[0], {})
    assert "times as fast" in capsys.readouterr().out


def test_documented_compiled_library_runs(quick_bench, library, capsys, monkeypatch):
    monkeypatch.chdir(library.parent)
    exec(blocks("python")[1], {})
    assert "times as fast" in capsys.readouterr().out


def test_wrong_compiled_library_is_refused(quick_bench, library):
    with pytest.raises(InvalidRequestError, match="your function is wrong"):
        compare("linear", ctypes.CDLL(str(library)).wrong, case=CASE, threads=1, seconds=0)
