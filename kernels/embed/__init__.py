"""Token embedding; see embed.h."""

import numpy as np

from simplear_engine.kernels.op import F32, FLOAT, I32, Case, In, Op, Out


def reference(token_ids, slot, last_code, table, visual_offset, **_):
    ids = token_ids.copy()
    sampled = token_ids < 0
    ids[sampled] = last_code[slot[sampled]] + visual_offset
    return {"hidden": table[ids]}


def make_inputs(case, rng):
    a = case.axes
    offset = case.scalars["visual_offset"]
    token_ids = rng.integers(-1, offset, a["N"])
    return {
        "token_ids": token_ids.astype(np.int32),
        # A slot is looked at only where the id is -1.
        "slot": np.where(token_ids < 0, rng.integers(0, a["S"], a["N"]), 1 << 30).astype(np.int32),
        "last_code": rng.integers(0, a["V"] - offset, a["S"]).astype(np.int32),
        "table": rng.standard_normal((a["V"], a["D"])).astype(np.float32),
    }


OP = Op(
    name="embed",
    axes={"N": "num_tokens", "S": "num_slots", "V": "vocab_size", "D": "hidden_size"},
    args={
        "token_ids": In("N", I32),
        "slot": In("N", I32),
        "last_code": In("S", I32),
        "table": In("V, D", FLOAT),
        "hidden": Out("N, D", F32),
    },
    scalars={"visual_offset": None},
    reference=reference,
    make_inputs=make_inputs,
    test_cases=[
        Case({"N": n, "S": 3, "V": 41, "D": d}, {"table": dtype}, {"visual_offset": 17})
        for n, d in [(1, 64), (7, 37), (130, 16)]
        for dtype in FLOAT
    ],
    bench_cases=[Case({"N": 2, "S": 1, "V": 215672, "D": 896}, {"table": "bfloat16"}, {"visual_offset": 151672})],
    tolerance=lambda case: (0, 0),
    bytes_moved=lambda a, dtypes: a["N"] * a["D"] * (4 + (2 if dtypes["table"] == "bfloat16" else 4)),
    flops=lambda a: 0,
)
