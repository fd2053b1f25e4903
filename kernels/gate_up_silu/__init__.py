"""RMSNorm, gate and up projection and their SwiGLU product; see gate_up_silu.h."""

import numpy as np

from simplear_engine.kernels.linear import weight_bytes
from simplear_engine.kernels.op import F32, FLOAT, Case, In, Op, Out
from simplear_engine.kernels.packed_weight import ANY_WEIGHT, WEIGHT, ReferenceWeight, norm_slack, pack, rms_norm


def pack_halves(weight: np.ndarray, dtype: str, pool):
    """Packs a float32 array [2 I, K], gate above up, by turns."""
    from simplear_engine import _C

    return pack([_C.Tensor.from_numpy(half.copy()) for half in np.split(weight, 2)], dtype, pool, interleaved=True)


def reference(x, norm_weight, weight, eps, **_):
    gate, up = np.split(weight.product(rms_norm(x, norm_weight, eps)).astype(np.float64), 2, axis=-1)
    return {"y": (gate / (1 + np.exp(-gate)) * up).astype(np.float32)}


def make_inputs(case, rng):
    a = case.axes
    inputs = {
        "x": rng.standard_normal((a["N"], a["K"])).astype(np.float32) * 3,
        "norm_weight": rng.standard_normal(a["K"]).astype(np.float32),
        "weight": rng.standard_normal((2 * a["I"], a["K"])).astype(np.float32) * np.float32(2 / np.sqrt(a["K"])),
    }
    # Gates far from 0 on both sides.
    inputs["weight"][: a["I"] : 5] *= 20
    return inputs


def case(n, i, k, weight, norm="float32"):
    y = weight if weight in FLOAT else "float32"
    return Case({"N": n, "I": i, "K": k}, {"norm_weight": norm, "weight": weight, "y": y}, {"eps": 1e-6})


def tolerance(case):
    """Outputs are products of two sums, of size 5 to 100, whose rounding grows with the square root of their length."""
    slack = norm_slack(case.axes["N"] * case.axes["K"], case.dtypes["weight"], 0.2)
    return (8e-3 if case.dtypes["y"] == "bfloat16" else 1e-5), 7e-6 * np.sqrt(case.axes["K"]) + slack


OP = Op(
    name="gate_up_silu",
    axes={"N": "num_rows", "K": "hidden_size", "I": "intermediate_size"},
    args={
        "x": In("N, K", F32),
        "norm_weight": In("K", FLOAT),
        "weight": In("2*I, K", ANY_WEIGHT),
        "y": Out("N, I", FLOAT),
    },
    scalars={"eps": None},
    layouts={"weight": pack_halves},
    reference_forms={"weight": ReferenceWeight},
    reference=reference,
    make_inputs=make_inputs,
    test_cases=[
        case(n, i, k, weight, norm)
        for n, i, k in [(1, 16, 32), (2, 48, 66), (3, 37, 130), (7, 100, 34), (17, 160, 64)]
        for weight in WEIGHT
        for norm in FLOAT
    ],
    bench_cases=[case(n, 4864, 896, weight, "bfloat16") for weight in WEIGHT for n in (2, 8, 16, 64)],
    tolerance=tolerance,
    bytes_moved=lambda a, dtypes: weight_bytes(2 * a["I"], a["K"], dtypes["weight"]),
    flops=lambda a: 4 * a["N"] * a["I"] * a["K"],
    multiplies="weight",
)
