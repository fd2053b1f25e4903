"""Matrix product with packed weights, after an optional RMSNorm; see linear.h."""

import numpy as np

from simplear_engine.kernels.op import F32, FLOAT, Case, In, InOut, Op
from simplear_engine.kernels.packed_weight import ANY_WEIGHT, WEIGHT, ReferenceWeight, norm_slack, pack_array, rms_norm
from simplear_engine.kernels.quantization import QUANTIZED


def reference(x, weight, y, norm_weight=None, bias=None, accumulate=0, eps=0.0, **_):
    product = weight.product(x if norm_weight is None else rms_norm(x, norm_weight, eps))
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
    if "norm_weight" in case.dtypes:
        inputs["x"] *= 5
        inputs["norm_weight"] = rng.standard_normal(a["K"]).astype(np.float32)
    if not case.scalars["accumulate"]:
        inputs["y"][:] = np.nan
        inputs["bias"] = rng.standard_normal(a["M"]).astype(np.float32)
    return inputs


def cases():
    for n, m, k in [(1, 16, 32), (2, 64, 64), (3, 37, 18), (5, 100, 130), (11, 129, 896), (64, 33, 70)]:
        for weight in WEIGHT:
            x = weight if weight in FLOAT else "float32"
            for y, accumulate in [("float32", 0), ("float32", 1), ("bfloat16", 0)]:
                yield Case({"N": n, "M": m, "K": k}, {"x": x, "weight": weight, "y": y}, {"accumulate": accumulate})
            for norm in FLOAT:
                dtypes = {"x": "float32", "norm_weight": norm, "weight": weight, "y": "float32"}
                yield Case({"N": n, "M": m, "K": k}, dtypes, {"accumulate": 0, "eps": 1e-5})
    for weight in ("float32", *QUANTIZED):
        for x in FLOAT:
            yield Case({"N": 2, "M": 5, "K": 33}, {"x": x, "weight": weight, "y": "float32"}, {"accumulate": 0})


def tolerance(case):
    if case.dtypes["y"] == "bfloat16":
        return 8e-3, 1e-4
    a, has_norm = case.axes, "norm_weight" in case.dtypes
    slack = norm_slack(a["N"] * a["K"], case.dtypes["weight"], 1e-3) if has_norm else 0
    return 1e-5, slack + 3e-6 * np.sqrt(a["K"])


OP = Op(
    name="linear",
    axes={"N": "num_rows", "K": "in_features", "M": "out_features"},
    args={
        "x": In("N, K", FLOAT),
        "norm_weight": In("K", FLOAT, optional=True),
        "weight": In("M, K", ANY_WEIGHT),
        "bias": In("M", F32, optional=True),
        "y": InOut("N, M", FLOAT),
    },
    scalars={"accumulate": 0, "eps": 0.0},
    layouts={"weight": pack_array},
    reference_forms={"weight": ReferenceWeight},
    reference=reference,
    make_inputs=make_inputs,
    test_cases=list(cases()),
    bench_cases=[
        Case(
            {"N": n, "M": m, "K": k},
            {"x": weight if weight in FLOAT else "float32", "weight": weight, "y": "float32"},
            {"accumulate": 0},
        )
        for weight in WEIGHT
        for n in (2, 8, 16, 64)
        for m, k in [(1152, 896), (896, 896), (896, 4864), (64000, 896)]
    ],
    tolerance=tolerance,
    bytes_moved=lambda a, dtypes: weight_bytes(a["M"], a["K"], dtypes["weight"]),
    flops=lambda a: 2 * a["N"] * a["M"] * a["K"],
    multiplies="weight",
)


def weight_bytes(rows: int, k: int, dtype: str) -> int:
    """Bytes of a packed matrix without its padding."""
    bits = {"float32": 32, "bfloat16": 16, "int8": 8, "float8_e4m3": 8, "int4": 4.5}[dtype]
    return int(rows * k * bits) // 8 + (4 * rows if dtype in ("int8", "float8_e4m3") else 0)
