"""SwiGLU gate; see silu_mul.h."""

import numpy as np

from simplear_engine.kernels.op import F32, FLOAT, Case, In, Op, Out


def reference(gate_up, **_):
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=-1)
    return {"y": (gate / (1 + np.exp(-gate)) * up).astype(np.float32)}


def make_inputs(case, rng):
    a = case.axes
    gate_up = rng.standard_normal((a["N"], 2 * a["I"])).astype(np.float32) * 4
    gate_up.flat[:6] = [0, -0.0, 80, -80, 30, -100]
    return {"gate_up": gate_up}


OP = Op(
    name="silu_mul",
    axes={"N": "num_rows", "I": "intermediate_size"},
    args={"gate_up": In("N, 2*I", F32), "y": Out("N, I", FLOAT)},
    reference=reference,
    make_inputs=make_inputs,
    test_cases=[Case({"N": n, "I": i}, {"y": dtype}) for n, i in [(1, 16), (3, 37), (9, 160)] for dtype in FLOAT],
    bench_cases=[Case({"N": 2, "I": 4864}, {"y": "bfloat16"})],
    tolerance=lambda case: (8e-3, 1e-6) if case.dtypes["y"] == "bfloat16" else (2e-6, 1e-6),
    bytes_moved=lambda a, dtypes: a["N"] * a["I"] * (8 + (2 if dtypes["y"] == "bfloat16" else 4)),
    flops=lambda a: 20 * a["N"] * a["I"],
)
