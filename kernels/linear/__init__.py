"""Matrix product with packed weights; see linear.h."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from simplear_engine.errors import UnsupportedError
from simplear_engine.kernels.op import F32, FLOAT, Case, In, InOut, Op


@dataclass(frozen=True)
class PackedWeight:
    """A weight matrix in panels: `shape` is the logical [M, K], `storage` the packed `_C.Tensor`."""

    storage: Any
    shape: tuple[int, int]

    @property
    def dtype(self) -> str:
        return self.storage.dtype


def pack(parts, dtype: str, pool) -> PackedWeight:
    """Packs the rows of `parts` (list of `_C.Tensor` [M_i, K]) one after the other, as `dtype`."""
    from simplear_engine import _C

    rows, k = sum(part.shape[0] for part in parts), parts[0].shape[1]
    if dtype == "bfloat16" and k % 2:
        raise UnsupportedError(
            f"a weight matrix of {k} columns: bfloat16 takes them in pairs, so an even number is needed; "
            f'use dtype="float32"'
        )
    storage = _C.Tensor.zeros([_C.packed_size(rows, k, dtype)], dtype)
    _C.pack_panels(parts, storage, pool)
    return PackedWeight(storage, (rows, k))


def pack_array(weight: np.ndarray, dtype: str, pool) -> PackedWeight:
    """Packs a float32 array [M, K] as `dtype`."""
    from simplear_engine import _C

    return pack([_C.Tensor.from_numpy(np.ascontiguousarray(weight))], dtype, pool)


def reference(x, weight, y, bias=None, accumulate=0, **_):
    product = (x.astype(np.float64) @ weight.astype(np.float64).T).astype(np.float32)
    if bias is not None:
        product = product + bias
    return {"y": product + y if accumulate else product}


def make_inputs(case, rng):
    a = case.axes
    inputs = {
        "x": rng.standard_normal((a["N"], a["K"])).astype(np.float32),
        "weight": rng.standard_normal((a["M"], a["K"])).astype(np.float32) / np.sqrt(a["K"]).astype(np.float32),
        "y": rng.standard_normal((a["N"], a["M"])).astype(np.float32),
    }
    if not case.scalars["accumulate"]:
        inputs["y"][:] = np.nan
        inputs["bias"] = rng.standard_normal(a["M"]).astype(np.float32)
    return inputs


def cases():
    for n, m, k in [(1, 16, 32), (2, 64, 64), (3, 37, 18), (5, 100, 130), (11, 129, 896), (64, 33, 70)]:
        for dtype in FLOAT:
            for y, accumulate in [("float32", 0), ("float32", 1), ("bfloat16", 0)]:
                yield Case({"N": n, "M": m, "K": k}, {"x": dtype, "weight": dtype, "y": y}, {"accumulate": accumulate})
    yield Case({"N": 2, "M": 5, "K": 33}, {"x": "float32", "weight": "float32", "y": "float32"}, {"accumulate": 0})


def tolerance(case):
    return (8e-3, 1e-4) if case.dtypes["y"] == "bfloat16" else (1e-5, 3e-6 * np.sqrt(case.axes["K"]))


OP = Op(
    name="linear",
    axes={"N": "num_rows", "K": "in_features", "M": "out_features"},
    args={
        "x": In("N, K", FLOAT),
        "weight": In("M, K", FLOAT),
        "bias": In("M", F32, optional=True),
        "y": InOut("N, M", FLOAT),
    },
    scalars={"accumulate": 0},
    layouts={"weight": pack_array},
    reference=reference,
    make_inputs=make_inputs,
    test_cases=list(cases()),
    bench_cases=[
        Case({"N": n, "M": m, "K": k}, {"x": dtype, "weight": dtype, "y": "float32"}, {"accumulate": 0})
        for dtype in ("bfloat16", "float32")
        for n in (2, 8, 64)
        for m, k in [(1152, 896), (896, 896), (9728, 896), (896, 4864), (64000, 896)]
    ],
    tolerance=tolerance,
    bytes_moved=lambda a, dtypes: a["M"] * a["K"] * (2 if dtypes["weight"] == "bfloat16" else 4),
    flops=lambda a: 2 * a["N"] * a["M"] * a["K"],
)
