"""Root-mean-square normalisation; see rms_norm.h."""

import numpy as np

from simplear_engine.kernels.op import F32, FLOAT, I32, Case, In, Op, Out


def reference(x, weight, eps, rows=None, y=None, **_):
    x = x[rows] if rows is not None else x[: len(y)] if y is not None else x
    scale = 1 / np.sqrt(np.mean(np.square(x.astype(np.float64)), axis=-1, keepdims=True) + eps)
    return {"y": (x * scale * weight).astype(np.float32)}


def make_inputs(case, rng):
    a = case.axes
    inputs = {
        "x": rng.standard_normal((a["M"], a["D"])).astype(np.float32) * 3,
        "weight": rng.standard_normal(a["D"]).astype(np.float32),
    }
    if a["N"] != a["M"]:
        inputs["rows"] = rng.permutation(a["M"])[: a["N"]].astype(np.int32)
        unread = np.setdiff1d(np.arange(a["M"]), inputs["rows"])
        inputs["x"][unread] = np.nan
    return inputs


OP = Op(
    name="rms_norm",
    axes={"N": "num_rows", "M": "num_source_rows", "D": "hidden_size"},
    args={
        "x": In("M, D", F32),
        "rows": In("N", I32, optional=True),
        "weight": In("D", FLOAT),
        "y": Out("N, D", FLOAT),
    },
    scalars={"eps": 1e-6},
    reference=reference,
    make_inputs=make_inputs,
    test_cases=[
        Case({"N": n, "M": m, "D": d}, {"weight": weight, "y": y})
        for n, m, d in [(1, 1, 64), (3, 3, 37), (5, 9, 896)]
        for weight in FLOAT
        for y in FLOAT
    ],
    bench_cases=[Case({"N": 2, "M": 2, "D": 896}, {"weight": "bfloat16", "y": "bfloat16"})],
    tolerance=lambda case: (8e-3, 1e-6) if case.dtypes["y"] == "bfloat16" else (2e-6, 1e-6),
    bytes_moved=lambda a, dtypes: a["N"] * a["D"] * (4 + (2 if dtypes["y"] == "bfloat16" else 4)),
    flops=lambda a: 4 * a["N"] * a["D"],
)
