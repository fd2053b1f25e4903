"""Every implementation of every op against its reference, on every declared case.

Outputs start as NaN, inputs are compared before and after (testing/op_trial.py), and cases poison what must not be read.
"""

import pytest

from simplear_engine import _C
from simplear_engine.kernels.op import all_ops
from simplear_engine.testing.op_trial import Trial

OPS = all_ops()
IMPLS = _C.op_impls()


def runnable():
    isas, here = _C.compiled_isas(), _C.available_isas()
    for name, op in OPS.items():
        for impl in IMPLS.get(name, []):
            if impl in isas and impl not in here:
                continue
            for case in op.test_cases:
                yield pytest.param(op, impl, case, id=f"{name}-{impl}-{case.id}")


@pytest.fixture(scope="module")
def pool():
    return _C.ThreadPool(2)


@pytest.mark.parametrize("op, impl, case", list(runnable()))
def test_matches_reference(op, impl, case, pool):
    trial = Trial(op, impl, case, pool)
    trial.run()
    trial.check()


@pytest.mark.parametrize("name", OPS)
def test_declaration_names_the_fields_of_the_struct(name):
    op = OPS[name]
    declared = {*op.args, *op.scalars, *(field for field in op.axes.values() if field)}
    assert declared == set(_C.op_fields(name))


def test_every_op_runs_on_every_instruction_set():
    assert set(IMPLS) == set(OPS)
    for name, impls in IMPLS.items():
        assert set(_C.compiled_isas()) <= set(impls), name


def test_wrong_shape_is_named_with_what_was_expected(pool):
    op = OPS["gumbel_noise"]
    args = {
        "seed": _C.Tensor.zeros([3], "uint64"),
        "position": _C.Tensor.zeros([2], "int32"),
        "noise": _C.Tensor.zeros([3, 7], "float32"),
    }
    with pytest.raises(ValueError, match=r"gumbel_noise.position: expected \[P\] = \[3\], got \[2\]"):
        op.run("baseline", pool, args)


def test_wrong_dtype_is_named_with_what_was_expected(pool):
    op = OPS["gumbel_noise"]
    args = {
        "seed": _C.Tensor.zeros([1], "uint64"),
        "position": _C.Tensor.zeros([1], "int32"),
        "noise": _C.Tensor.zeros([1, 7], "bfloat16"),
    }
    with pytest.raises(ValueError, match="gumbel_noise.noise: expected float32, got bfloat16"):
        op.run("baseline", pool, args)
