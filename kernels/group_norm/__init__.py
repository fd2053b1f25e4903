"""Group normalisation with optional SiLU; see group_norm.h."""

import numpy as np
from simplear_engine.kernels.op import F32, FLOAT, Case, In, Op, Out


def reference(x, weight, bias, groups, silu, eps, **_):
    batch, height, width, channels = x.shape
    grouped = x.reshape(batch, height * width, groups, channels // groups).astype(np.float64)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    y = ((grouped - mean) / np.sqrt(variance + eps)).reshape(x.shape) * weight + bias
    return {"y": (y / (1 + np.exp(-y)) if silu else y).astype(np.float32)}


def make_inputs(case, rng):
    a = case.axes
    x = rng.standard_normal((a["B"], a["H"], a["W"], a["C"])) * rng.uniform(0.5, 2, a["C"]) + rng.uniform(-1, 1, a["C"])
    # A mean far from zero is where sums of squares lose their digits.
    x[..., : a["C"] // case.scalars["groups"]] += 20
    return {
        "x": x.astype(np.float32),
        "weight": rng.standard_normal(a["C"]).astype(np.float32),
        "bias": rng.standard_normal(a["C"]).astype(np.float32),
    }


OP = Op(
    name="group_norm",
    axes={"B": "batch", "H": "height", "W": "width", "C": "channels"},
    args={
        "x": In("B, H, W, C", FLOAT),
        "weight": In("C", F32),
        "bias": In("C", F32),
        "y": Out("B, H, W, C", FLOAT),
    },
    scalars={"groups": None, "silu": None, "eps": 1e-6},
    reference=reference,
    make_inputs=make_inputs,
    test_cases=[
        Case({"B": b, "H": h, "W": w, "C": c}, {"x": x, "y": y}, {"groups": groups, "silu": silu})
        for b, h, w, c, groups in [(1, 1, 2, 8, 2), (2, 5, 13, 24, 3), (2, 8, 9, 64, 32), (1, 16, 12, 37, 1)]
        for x in FLOAT
        for y in FLOAT
        for silu in (0, 1)
    ],
    bench_cases=[
        Case({"B": 1, "H": h, "W": h, "C": c}, {"x": dtype, "y": dtype}, {"groups": 1, "silu": 1})
        for dtype in ("bfloat16", "float32")
        for h, c in [(128, 256), (64, 512), (8, 128)]
    ],
    # A mean of ten deviations costs a digit of float32 in x * scale + shift.
    tolerance=lambda case: (8e-3, 1e-4) if case.dtypes["y"] == "bfloat16" else (1e-5, 3e-5),
    bytes_moved=lambda a, dtypes: (
        a["B"] * a["H"] * a["W"] * a["C"] * sum(2 if d == "bfloat16" else 4 for d in dtypes.values())
    ),
    flops=lambda a: 12 * a["B"] * a["H"] * a["W"] * a["C"],
)
