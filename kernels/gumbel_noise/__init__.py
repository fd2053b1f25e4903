"""The noise of guided sampling; see gumbel_noise.h and noise.py."""

import numpy as np

from simplear_engine.kernels.gumbel_noise.noise import gumbel_noise
from simplear_engine.kernels.op import F32, I32, U64, Case, In, Op, Out


def reference(seed, position, noise, **_):
    codes = noise.shape[1]
    return {"noise": np.stack([gumbel_noise(int(s), int(p), codes) for s, p in zip(seed, position, strict=True)])}


def make_inputs(case, rng):
    return {
        "seed": rng.integers(0, 2**64, case.axes["P"], dtype=np.uint64),
        "position": rng.integers(0, 4096, case.axes["P"]).astype(np.int32),
        # Only its width is looked at: it is written from end to end.
        "noise": np.full((case.axes["P"], case.axes["V"]), np.nan, np.float32),
    }


OP = Op(
    name="gumbel_noise",
    axes={"P": "num_rows", "V": "num_codes"},
    args={"seed": In("P", U64), "position": In("P", I32), "noise": Out("P, V", F32)},
    reference=reference,
    make_inputs=make_inputs,
    test_cases=[Case({"P": p, "V": v}) for p, v in [(1, 4), (3, 37), (2, 64000)]],
    bench_cases=[Case({"P": 1, "V": 64000})],
    # Every bit.
    tolerance=lambda case: (0, 0),
    bytes_moved=lambda a, dtypes: 4 * a["P"] * a["V"],
    flops=lambda a: 60 * a["P"] * a["V"],
)
