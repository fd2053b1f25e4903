"""Somebody's own kernel against ours, without touching the tree: checked first, then timed in turns.

    from simplear_engine.bench import compare

    def mine(x, weight, bias, y, **scalars):
        y[:] = x @ weight.T + bias

    compare("linear", mine, case="x=float32-weight=float32")

docs/benchmarking.md says how a compiled library is called.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from simplear_engine import _C
from simplear_engine.backend import CpuBackend
from simplear_engine.bench.machine import checked, one_line
from simplear_engine.bench.ops import Recorded
from simplear_engine.bench.timing import Times, in_turns
from simplear_engine.dtypes import FLOATING, from_float32
from simplear_engine.errors import InvalidRequestError
from simplear_engine.kernels.op import Case, Op, all_ops
from simplear_engine.testing.op_trial import Trial

TURNS = 20


@dataclass(frozen=True)
class Comparison:
    """ours, mine: seconds of single calls. ratio: medians, ours over mine; above 1 yours is faster."""

    op: str
    impl: str
    case: str
    ours: Times
    mine: Times

    @property
    def ratio(self) -> float:
        return self.ours.median / self.mine.median

    def __str__(self) -> str:
        ours, mine = self.ours.fields("us"), self.mine.fields("us")
        return (
            f"{self.op} {self.case}: ours ({self.impl}) {ours['us']:.1f} us (p10 {ours['p10_us']:.1f}, p90 "
            f"{ours['p90_us']:.1f}), yours {mine['us']:.1f} us (p10 {mine['p10_us']:.1f}, p90 {mine['p90_us']:.1f}): "
            f"yours is {self.ratio:.2f} times as fast"
        )


def compare(
    op: str, function: Callable, *, case: str | Case | None = None, impl: str | None = None,
    threads: int | None = None, seconds: float = 1.0, tensors: bool = False,
) -> Comparison:  # fmt: skip
    """Checks `function` against the op's reference, times it in turns with ours, prints one line and returns it.

    function: a Python callable that is called with the op's arguments and scalars by name and writes the outputs in
    place; arrays are NumPy views, bfloat16 as uint16 bits (with tensors=True, `_C.Tensor`s). Or a function of a
    ctypes.CDLL: it gets the addresses of the arguments that the case has in the order of the declaration, then the size
    of every axis as int32, then the scalars that the case names as int32 or float. Weights come as plain rows, not
    packed; packing is yours to do, before. case: a Case, or a part of the name of a declared one (default: the first to
    time). impl: which of ours (default: the one that is chosen here). Raises InvalidRequestError where the outputs are
    wrong, and times nothing then.
    """
    if op not in all_ops():
        raise InvalidRequestError(f"op {op}: expected one of {', '.join(sorted(all_ops()))}")
    declared = all_ops()[op]
    chosen = case if isinstance(case, Case) else _case(declared, case)
    backend = CpuBackend(threads)
    impl = impl or backend.implementation(op)
    ours, theirs = (Trial(declared, impl, chosen, backend.pool) for _ in range(2))
    checked(ours)
    call = _call_of(declared, function, theirs, tensors)
    call()
    try:
        theirs.check()
    except AssertionError as error:
        raise InvalidRequestError(f"{op} {chosen.id}: your function is wrong, not timed: {one_line(error)}") from None
    runs = {"ours": Recorded(ours, backend.pool).run, "mine": call}
    before = {"ours": ours.rewind, "mine": theirs.rewind} if declared.moves_on else {}
    times = in_turns(runs, TURNS, seconds / TURNS / 2, before=before)
    found = Comparison(op, impl, chosen.id, times["ours"], times["mine"])
    print(found)
    return found


def _case(op: Op, part: str | None) -> Case:
    known = [*op.bench_cases, *op.test_cases]
    found = [case for case in known if part is None or part in case.id]
    if not found:
        raise InvalidRequestError(f"{op.name}: no case matches {part!r}; the first to time is {known[0].id}")
    return found[0]


def _call_of(op: Op, function: Callable, trial: Trial, tensors: bool) -> Callable[[], object]:
    """The function with its arguments bound, so that a turn times nothing else."""
    given = {name: _plain(trial, name) for name in op.args if name in trial._args}
    if isinstance(function, ctypes._CFuncPtr):
        sizes = op.solve_axes({name: tensor.shape for name, tensor in given.items()}, known=trial.case.axes)
        bound = [ctypes.c_void_p(tensor.address) for tensor in given.values()]
        bound += [ctypes.c_int32(sizes[axis]) for axis in op.axes]
        for value in trial.case.scalars.values():
            bound.append(ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int32(value))
        # The tensors must outlive the addresses.
        return lambda kept=given: function(*bound)
    views = given if tensors else {name: tensor.numpy() for name, tensor in given.items()}
    scalars = {**op.scalars, **trial.case.scalars}
    return lambda: function(**views, **scalars)


def _plain(trial: Trial, name: str):
    """The argument as a `_C.Tensor` that anybody can read."""
    if name not in trial.op.layouts:
        return trial._args[name]
    dtype = trial._dtype(name)
    if dtype not in FLOATING:
        return _C.Tensor.from_numpy(trial._arrays[name])
    return _C.Tensor.from_numpy(np.ascontiguousarray(from_float32(trial._arrays[name], dtype)), dtype)
