"""One implementation of one op on one declared case, checked against the reference.

Shared by the tests (every implementation, every case) and by the microbenchmarks, which time nothing that has not just
passed. Outputs start as NaN, inputs are compared before and after.
"""

import numpy as np

from simplear_engine import _C
from simplear_engine.dtypes import decode_bfloat16, encode_bfloat16
from simplear_engine.kernels import float8
from simplear_engine.kernels.op import Case, Op, evaluate


class Trial:
    """Arguments of a case, ready to run; `check()` raises AssertionError where the outputs are not the reference's."""

    def __init__(self, op: Op, impl: str, case: Case, pool: _C.ThreadPool):
        self.op, self.impl, self.case, self._pool = op, impl, case, pool
        rng = np.random.default_rng(sum(map(ord, case.id)))
        self._arrays = {name: np.ascontiguousarray(array) for name, array in op.make_inputs(case, rng).items()}
        for name, array in self._arrays.items():
            if self._dtype(name) == "bfloat16":
                self._arrays[name] = decode_bfloat16(encode_bfloat16(array))
        sizes = op.solve_axes({name: array.shape for name, array in self._arrays.items()}, known=case.axes)
        self._args = {}
        for name, spec in op.args.items():
            if name in self._arrays:
                self._args[name] = self._given(name)
            elif not spec.optional:
                self._args[name] = self._poisoned(
                    [evaluate(extent, sizes) for extent in spec.extents], self._dtype(name)
                )

    def run(self) -> None:
        self.op.run(self.impl, self._pool, self._args, **self.case.scalars)

    def rewind(self) -> None:
        """Gives the op its first inputs again, where a run has written over them."""
        for name, spec in self.op.args.items():
            if spec.role == "inout" and name in self._arrays:
                self._args[name].numpy()[...] = self._given(name).numpy()

    def check(self) -> None:
        """To be called after the first `run()`, or after one that followed a `rewind()`."""
        inputs = dict(self._arrays)
        for name, form in self.op.reference_forms.items():
            inputs[name] = form(inputs[name], self._dtype(name))
        expected = self.op.reference(**inputs, **{**self.op.scalars, **self.case.scalars})
        rtol, atol = self.op.tolerance(self.case)
        for name, spec in self.op.args.items():
            if spec.role == "in":
                if name in self._arrays and name not in self.op.layouts:
                    got = _values(self._args[name])
                    np.testing.assert_array_equal(got, self._arrays[name], err_msg=f"input {name} was changed")
                continue
            if name not in self._args:
                continue
            want, got = expected[name], _values(self._args[name])
            if self._dtype(name) == "bfloat16":
                want = decode_bfloat16(encode_bfloat16(want))
            np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=name)

    def _dtype(self, name: str) -> str:
        return self.case.dtypes.get(name, self.op.args[name].dtypes[0])

    def _given(self, name: str):
        array, dtype = self._arrays[name], self._dtype(name)
        if name in self.op.layouts:
            return self.op.layouts[name](array, dtype, self._pool)
        if dtype == "bfloat16":
            return _C.Tensor.from_numpy(encode_bfloat16(array), "bfloat16")
        if dtype == float8.NAME:
            return _C.Tensor.from_numpy(array.copy(), dtype)
        return _C.Tensor.from_numpy(array.copy())

    @staticmethod
    def _poisoned(shape: list[int], dtype: str) -> _C.Tensor:
        tensor = _C.Tensor.zeros(shape, dtype)
        tensor.numpy().view(np.uint8).fill(0xFF)  # NaN in every float type, -1 in integers
        return tensor


def _values(tensor: _C.Tensor) -> np.ndarray:
    return decode_bfloat16(tensor.numpy()) if tensor.dtype == "bfloat16" else tensor.numpy()
