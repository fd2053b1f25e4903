"""Finite scalar quantisation, index to code; see fsq_decode.h."""

import numpy as np

from simplear_engine.kernels.op import F32, I32, Case, In, Op, Out

LEVELS = {3: [5, 4, 3], 4: [8, 5, 5, 5], 6: [8, 8, 8, 5, 5, 5]}


def reference(indices, levels, **_):
    basis = np.concatenate([[1], np.cumprod(levels[:-1])])
    digits = indices[:, None] // basis % levels
    return {"codes": ((digits - levels // 2) / (levels // 2)).astype(np.float32)}


def make_inputs(case, rng):
    levels = np.array(LEVELS[case.axes["D"]], np.int32)
    indices = rng.integers(0, np.prod(levels), case.axes["N"]).astype(np.int32)
    indices[0], indices[-1] = 0, np.prod(levels) - 1
    return {"indices": indices, "levels": levels}


OP = Op(
    name="fsq_decode",
    axes={"N": "num_indices", "D": "num_dims"},
    args={"indices": In("N", I32), "levels": In("D", I32), "codes": Out("N, D", F32)},
    reference=reference,
    make_inputs=make_inputs,
    test_cases=[Case({"N": n, "D": d}) for n in (1, 65, 1024) for d in (3, 4, 6)],
    bench_cases=[Case({"N": 4096, "D": 6})],
    tolerance=lambda case: (0, 0),
    bytes_moved=lambda a, dtypes: a["N"] * (4 + 4 * a["D"]),
    flops=lambda a: 4 * a["N"] * a["D"],
)
