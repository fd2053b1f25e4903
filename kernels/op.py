"""How an operation is declared: once, as data, for every backend.

A folder kernels/<op>/ holds a declaration and a NumPy reference (`__init__.py`), the C struct of its arguments
(`<op>.h`), and implementations (csrc/cpu/ops/<op>.cc, <op>.cu, <op>_triton.py). From the declaration follow shape
checks with readable errors, the generic tests (python_tests/test_ops.py) and the microbenchmarks. Nothing here knows
what any op computes.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simplear_engine.errors import InvalidRequestError, UnsupportedError

FLOAT = ("float32", "bfloat16")
F32 = ("float32",)
# The implementations for a GPU; "simt" is the CUDA kernels run on the host.
GPU_IMPLS = ("cuda", "triton", "simt")
I32 = ("int32",)
U64 = ("uint64",)


@dataclass(frozen=True)
class Arg:
    """A tensor argument: its shape as expressions over the op's axes, and the dtypes that it may have.

    role is "in", "out" (every element is written) or "inout". Shapes are written as one string, "N, (H+2*G)*E".
    gpu_dtypes: those that implementations for a GPU take besides.
    """

    shape: str
    dtypes: tuple[str, ...]
    role: str = "in"
    optional: bool = False
    gpu_dtypes: tuple[str, ...] = ()

    @property
    def extents(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.shape.split(","))


def In(shape: str, dtypes: tuple[str, ...], optional: bool = False, gpu_dtypes: tuple[str, ...] = ()) -> Arg:
    return Arg(shape, dtypes, "in", optional, gpu_dtypes)


def Out(shape: str, dtypes: tuple[str, ...]) -> Arg:
    return Arg(shape, dtypes, "out")


def InOut(shape: str, dtypes: tuple[str, ...], optional: bool = False, gpu_dtypes: tuple[str, ...] = ()) -> Arg:
    return Arg(shape, dtypes, "inout", optional, gpu_dtypes)


@dataclass(frozen=True)
class Case:
    """One set of sizes to test or to time: axis values, dtypes of polymorphic arguments, and scalars.

    inputs: values that fill an argument which make_inputs else varies.
    """

    axes: Mapping[str, int]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    scalars: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        parts = [f"{axis}{size}" for axis, size in self.axes.items()]
        parts += [f"{name}={dtype}" for name, dtype in self.dtypes.items()]
        parts += [f"{name}={value}" for name, value in [*self.scalars.items(), *self.inputs.items()]]
        return "-".join(parts)


@dataclass(frozen=True)
class Op:
    """The declaration of an operation.

    axes: letter -> integer field of the C struct that receives its size, or None when the struct does not want it.
    args: name -> Arg, named as in the struct. scalars: name -> default (None: required).
    reference(**arrays, **scalars) -> {output name: array}: slow, obvious, NumPy; bfloat16 arrives widened to float32.
    make_inputs(case, rng) -> {name: array} of every "in" and "inout" argument; memory that must not be read is poisoned.
    layouts: name -> function(array, dtype, pool) that brings an argument into the form an implementation takes
    (packed weights); reference_forms: name -> function(array, dtype) that brings it into the form the reference takes.
    tolerance(case) -> (rtol, atol) between an implementation and the reference.
    bytes_moved(axes, dtypes), flops(axes): the floor, for benchmarks. multiplies: the argument whose dtype says which
    product of matrices is the roof of those flops; None: they are not products of matrices. moves_on: a run goes on
    where the last one ended, as decoding does, so that who repeats it gives it its first inputs again.
    """

    name: str
    axes: Mapping[str, str | None]
    args: Mapping[str, Arg]
    reference: Callable[..., Mapping[str, np.ndarray]]
    make_inputs: Callable[[Case, np.random.Generator], Mapping[str, np.ndarray]]
    test_cases: Sequence[Case]
    bench_cases: Sequence[Case] = ()
    scalars: Mapping[str, Any] = field(default_factory=dict)
    layouts: Mapping[str, Callable] = field(default_factory=dict)
    reference_forms: Mapping[str, Callable] = field(default_factory=dict)
    tolerance: Callable[[Case], tuple[float, float]] = lambda case: (1e-5, 1e-5)
    bytes_moved: Callable[..., int] | None = None
    flops: Callable[..., int] | None = None
    multiplies: str | None = None
    moves_on: bool = False

    def solve_axes(self, shapes: Mapping[str, Sequence[int]], known: Mapping[str, int] | None = None) -> dict[str, int]:
        """Sizes of all axes from the shapes of the arguments; InvalidRequestError names the argument that disagrees."""
        sizes = dict(known or {})
        pending = [
            (name, extent, int(size))
            for name, shape in shapes.items()
            for extent, size in zip(self._extents(name, shape), shape, strict=True)
        ]
        while True:
            progress = False
            for _, extent, size in pending:
                unknown = {axis for axis in axes_of(extent) if axis not in sizes}
                if len(unknown) != 1:
                    continue
                axis = unknown.pop()
                at0, at1 = (evaluate(extent, {**sizes, axis: value}) for value in (0, 1))
                if at1 != at0 and (size - at0) % (at1 - at0) == 0:
                    sizes[axis] = (size - at0) // (at1 - at0)
                    progress = True
            if not progress:
                break
        missing = [axis for axis in self.axes if axis not in sizes]
        if missing:
            raise InvalidRequestError(f"{self.name}: the arguments do not determine {', '.join(missing)}")
        for name, shape in shapes.items():
            expected = [evaluate(extent, sizes) for extent in self.args[name].extents]
            if list(shape) != expected:
                raise InvalidRequestError(
                    f"{self.name}.{name}: expected [{self.args[name].shape}] = {expected}, got {list(shape)}"
                )
        return sizes

    def _extents(self, name: str, shape: Sequence[int]) -> tuple[str, ...]:
        if name not in self.args:
            raise InvalidRequestError(f"{self.name}: no argument named {name}; it takes {', '.join(self.args)}")
        extents = self.args[name].extents
        if len(extents) != len(shape):
            raise InvalidRequestError(f"{self.name}.{name}: expected [{self.args[name].shape}], got {list(shape)}")
        return extents

    def fields(self, args: Mapping[str, Any], scalars: Mapping[str, Any], impl: str) -> dict[str, Any]:
        """The fields of the C struct for these arguments, as the implementation `impl` takes them.

        An argument is a `_C.Tensor`, or anything with `.shape`, `.dtype` and `.storage` (a packed weight, a buffer whose
        rows in use change from step to step: `.counts` then maps a dimension to the name of the plan's count).
        """
        given = {name: arg for name, arg in args.items() if arg is not None}
        sizes = self.solve_axes({name: arg.shape for name, arg in given.items()})
        counts = {}
        for name, arg in given.items():
            spec = self.args[name]
            if arg.dtype not in spec.dtypes and not (impl in GPU_IMPLS and arg.dtype in spec.gpu_dtypes):
                expected = " or ".join(spec.dtypes)
                if arg.dtype in spec.gpu_dtypes:
                    raise UnsupportedError(f"{self.name}.{name}: expected {expected} by {impl}, got {arg.dtype}")
                raise InvalidRequestError(f"{self.name}.{name}: expected {expected}, got {arg.dtype}")
            for dimension, count in getattr(arg, "counts", {}).items():
                counts[spec.extents[dimension]] = count
        fields: dict[str, Any] = {}
        for name, spec in self.args.items():
            if name not in given and not spec.optional:
                raise InvalidRequestError(f"{self.name}: {name} is missing")
            fields[name] = getattr(given[name], "storage", given[name]) if name in given else None
        for axis, struct_field in self.axes.items():
            if struct_field is not None:
                fields[struct_field] = counts.get(axis, sizes[axis])
        for name, default in self.scalars.items():
            value = scalars.get(name, default)
            if value is None:
                raise InvalidRequestError(f"{self.name}: {name} is missing")
            fields[name] = value
        unknown = set(scalars) - set(self.scalars)
        if unknown:
            raise InvalidRequestError(f"{self.name}: no scalar named {', '.join(sorted(unknown))}")
        return fields

    def run(self, impl: str, pool, args: Mapping[str, Any], **scalars) -> None:
        """Runs the implementation `impl` now; outputs are written into the given tensors."""
        from simplear_engine import _C

        _C.run_op(self.name, impl, self.fields(args, scalars, impl), pool)

    def record(self, program, impl: str, args: Mapping[str, Any], **scalars) -> None:
        """Appends the call to a `_C.Program`."""
        program.add(self.name, impl, self.fields(args, scalars, impl))


def evaluate(extent: str, sizes: Mapping[str, int]) -> int:
    """Value of a shape expression; declarations are our own source, never input."""
    if extent in sizes:
        return int(sizes[extent])
    return int(eval(compiled(extent), {"__builtins__": {}}, dict(sizes)))  # noqa: S307


@functools.cache
def compiled(extent: str):
    return compile(extent, extent, "eval")


@functools.cache
def axes_of(extent: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[A-Z]\w*", extent))


def all_ops() -> dict[str, Op]:
    """Every op of the installed package, by name: each folder of kernels/ that declares an OP."""
    package = importlib.import_module("simplear_engine.kernels")
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            op = getattr(importlib.import_module(f"simplear_engine.kernels.{module.name}"), "OP", None)
            if op is not None:
                found[op.name] = op
    return found
