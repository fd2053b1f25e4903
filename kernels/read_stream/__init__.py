"""Reading memory and nothing else, the yardstick of benchmarks; see read_stream.h."""

import numpy as np

from simplear_engine.kernels.op import I32, Case, In, Op, Out


def reference(x, xor_of, **_):
    edges = [len(x) * part // len(xor_of) for part in range(len(xor_of) + 1)]
    parts = [np.bitwise_xor.reduce(x[begin:end]) for begin, end in zip(edges, edges[1:], strict=False)]
    return {"xor_of": np.array(parts, np.int32)}


def make_inputs(case, rng):
    return {
        "x": rng.integers(-(2**31), 2**31, case.axes["N"], dtype=np.int32),
        # Only its length is looked at: it is written from end to end.
        "xor_of": np.zeros(case.axes["T"], np.int32),
    }


OP = Op(
    name="read_stream",
    axes={"N": "num_values", "T": "num_parts"},
    args={"x": In("N", I32), "xor_of": Out("T", I32)},
    reference=reference,
    make_inputs=make_inputs,
    test_cases=[Case({"N": n, "T": t}) for n, t in [(1, 1), (1000, 3), (4096, 2)]],
    bench_cases=[Case({"N": 1 << 26, "T": 2})],
    tolerance=lambda case: (0, 0),
    bytes_moved=lambda a, dtypes: 4 * a["N"],
    flops=lambda a: 0,
)
