"""Every implementation of every op against its reference, on every declared case.

Outputs start as NaN, inputs are compared before and after, and cases poison what must not be read.
"""

import numpy as np
import pytest

from simplear_engine import _C
from simplear_engine.dtypes import decode_bfloat16, encode_bfloat16
from simplear_engine.kernels.op import all_ops

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


def dtype_of(op, case, name):
    return case.dtypes.get(name, op.args[name].dtypes[0])


def as_tensor(array, dtype):
    return _C.Tensor.from_numpy(encode_bfloat16(array), "bfloat16") if dtype == "bfloat16" else _C.Tensor.from_numpy(array)


def as_array(tensor):
    return decode_bfloat16(tensor.numpy()) if tensor.dtype == "bfloat16" else tensor.numpy()


@pytest.fixture(scope="module")
def pool():
    return _C.ThreadPool(2)


@pytest.mark.parametrize("op, impl, case", list(runnable()))
def test_matches_reference(op, impl, case, pool):
    rng = np.random.default_rng(sum(map(ord, case.id)))
    arrays = {name: np.ascontiguousarray(array) for name, array in op.make_inputs(case, rng).items()}
    for name in arrays:
        if dtype_of(op, case, name) == "bfloat16":
            arrays[name] = decode_bfloat16(encode_bfloat16(arrays[name]))
    sizes = op.solve_axes({name: array.shape for name, array in arrays.items()}, known=case.axes)
    expected = op.reference(**arrays, **{**op.scalars, **case.scalars})

    args = {}
    for name, spec in op.args.items():
        dtype = dtype_of(op, case, name)
        if name in op.layouts and name in arrays:
            args[name] = op.layouts[name](arrays[name], dtype, pool)
        elif name in arrays:
            args[name] = as_tensor(arrays[name].copy(), dtype)
        elif not spec.optional:
            shape = [eval(extent, {}, dict(sizes)) for extent in spec.extents]
            args[name] = _C.Tensor.zeros(shape, dtype)
            args[name].numpy().view(np.uint8).fill(0xFF)  # NaN in every float type, -1 in integers
    op.run(impl, pool, args, **case.scalars)

    rtol, atol = op.tolerance(case)
    for name, spec in op.args.items():
        if spec.role == "in":
            if name in arrays and name not in op.layouts:
                np.testing.assert_array_equal(as_array(args[name]), arrays[name], err_msg=f"input {name} was changed")
        else:
            want, got = expected[name], as_array(args[name])
            if dtype_of(op, case, name) == "bfloat16":
                want = decode_bfloat16(encode_bfloat16(want))
            np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", OPS)
def test_declaration_names_the_fields_of_the_struct(name):
    op = OPS[name]
    declared = {*op.args, *op.scalars, *(field for field in op.axes.values() if field)}
    assert declared == set(_C.op_fields(name))


def test_every_op_runs_on_every_instruction_set():
    assert set(IMPLS) == set(OPS)
    for name, impls in IMPLS.items():
        assert sorted(impls) == sorted(_C.compiled_isas()), name


def test_wrong_shape_is_named_with_what_was_expected(pool):
    op = OPS["rms_norm"]
    tensor = lambda *shape: _C.Tensor.zeros(shape, "float32")  # noqa: E731
    with pytest.raises(ValueError, match=r"rms_norm.y: expected \[N, D\] = \[3, 8\], got \[3, 7\]"):
        op.run("baseline", pool, {"x": tensor(3, 8), "weight": tensor(8), "y": tensor(3, 7)})


def test_wrong_dtype_is_named_with_what_was_expected(pool):
    op = OPS["silu_mul"]
    with pytest.raises(ValueError, match="silu_mul.gate_up: expected float32, got bfloat16"):
        op.run("baseline", pool, {"gate_up": _C.Tensor.zeros([1, 4], "bfloat16"), "y": _C.Tensor.zeros([1, 2], "float32")})
