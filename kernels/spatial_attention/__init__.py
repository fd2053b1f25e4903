"""One head of attention among all positions of an image, plus a residual; see spatial_attention.h."""

import numpy as np
from simplear_engine.kernels.op import FLOAT, Case, In, Op, Out


def reference(qkv, residual, scale, **_):
    batch, height, width, channels = residual.shape
    q, k, v = np.split(qkv.reshape(batch, height * width, 3 * channels).astype(np.float64), 3, axis=2)
    scores = q @ k.transpose(0, 2, 1) * scale
    weights = np.exp(scores - scores.max(2, keepdims=True))
    weights /= weights.sum(2, keepdims=True)
    return {"y": ((weights @ v).reshape(residual.shape) + residual).astype(np.float32)}


def make_inputs(case, rng):
    a = case.axes
    qkv = rng.standard_normal((a["B"], a["H"], a["W"], 3 * a["C"])) * 1.5
    return {
        "qkv": qkv.astype(np.float32),
        "residual": rng.standard_normal((a["B"], a["H"], a["W"], a["C"])).astype(np.float32),
    }


def case(batch, height, width, channels, dtype):
    axes = {"B": batch, "H": height, "W": width, "C": channels}
    return Case(axes, dict.fromkeys(("qkv", "residual", "y"), dtype), {"scale": round(channels**-0.5, 6)})


OP = Op(
    name="spatial_attention",
    axes={"B": "batch", "H": "height", "W": "width", "C": "channels"},
    args={
        "qkv": In("B, H, W, 3*C", FLOAT),
        "residual": In("B, H, W, C", FLOAT),
        "y": Out("B, H, W, C", FLOAT),
    },
    scalars={"scale": None},
    reference=reference,
    make_inputs=make_inputs,
    test_cases=[
        case(*sizes, dtype)
        for sizes in [(1, 1, 1, 8), (2, 3, 5, 16), (1, 4, 4, 37), (2, 5, 7, 64), (1, 9, 11, 130)]
        for dtype in FLOAT
    ],
    bench_cases=[case(1, h, h, 512, dtype) for dtype in ("bfloat16", "float32") for h in (8, 32, 64)],
    # The weights of the average are rounded to bfloat16 themselves.
    tolerance=lambda case: (1e-2, 1e-2) if case.dtypes["y"] == "bfloat16" else (1e-5, 1e-5),
    bytes_moved=lambda a, dtypes: a["B"] * a["H"] * a["W"] * a["C"] * 5 * (2 if dtypes["y"] == "bfloat16" else 4),
    flops=lambda a: 4 * a["B"] * (a["H"] * a["W"]) ** 2 * a["C"],
    multiplies="qkv",
)
