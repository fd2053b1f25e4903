"""How long one decode step of one guided picture takes on the CPU, and what share of memory bandwidth that is.

    python benchmarks/decode_step.py [--size 0.5b] [--dtype bfloat16] [--threads N] [--tokens 256] [--runs 5]

A step streams every weight matrix once, so GB/s is the number to compare with what the machine can read. The weights
are random and written to a temporary folder. Nothing is measured before the engine has drawn the same greedy codes
twice, and teacher-forced scoring, which computes all positions in chunks, agrees with them. The last line is JSON.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections import Counter

import numpy as np

from simplear_engine import Engine
from simplear_engine.testing.random_checkpoint import SIZES, write_random_checkpoint

PROMPT, NEGATIVE = list(range(1000, 1030)), list(range(2000, 2034))


def step_bytes(model, element: int, mean_context: float) -> tuple[float, float]:
    """(weights, keys and values) that a step of one pair reads."""
    query, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    in_layer = model.hidden_size * (2 * query + 2 * kv + 3 * model.intermediate_size)
    weights = model.num_layers * in_layer + model.num_codes * model.hidden_size
    return weights * element, 2 * mean_context * model.num_layers * 2 * kv * element


def check(engine, size: int) -> None:
    ids = [i % engine.model.visual_offset for i in PROMPT]
    draw = {"height": size, "width": size, "temperature": 0, "guidance_scale": 1}
    first, second = (engine.generate_from_ids(ids, **draw)[0].tokens for _ in range(2))
    if not np.array_equal(first, second):
        sys.exit("wrong: two greedy runs differ")
    scored = engine.score_from_ids(ids, first).argmax(axis=1).reshape(first.shape)
    if not np.array_equal(first, scored):
        sys.exit("wrong: teacher-forced scoring does not give the greedy codes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=256, help="codes of the picture, a multiple of 16")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_random_checkpoint(folder, options.size)
        with Engine.from_pretrained(folder, dtype=options.dtype, threads=options.threads, max_pairs=1) as engine:
            report(engine, options)


def report(engine, options) -> None:
    check(engine, size=64)
    ids, negative = ([i % engine.model.visual_offset for i in given] for given in (PROMPT, NEGATIVE))
    draw = {"height": options.tokens, "width": 16 * 16, "guidance_scale": 6.0, "seed": 1}
    engine._program.set_timing(True)
    steps = []
    for _ in range(options.runs):
        timings = engine.generate_from_ids(ids, negative, **draw)[0].timings
        steps.append(timings["decode"] / (options.tokens - 1))
    seconds = Counter()
    for op, spent in engine._program.timings():
        seconds[op] += spent

    element = 2 if engine.dtype == "bfloat16" else 4
    mean_context = len(PROMPT) + options.tokens / 2
    weights, kv = step_bytes(engine.model, element, mean_context)
    median = statistics.median(steps)
    print(f"{options.size} {engine.dtype}, one guided pair, {options.tokens} codes, {engine!r}")
    print(f"a step reads {weights / 1e6:.0f} MB of weights and {kv / 1e6:.0f} MB of keys and values")
    for op, spent in seconds.most_common():
        print(f"  {op:<16} {100 * spent / sum(seconds.values()):5.1f} %")
    print(
        f"step  {1e3 * median:.2f} ms (best {1e3 * min(steps):.2f}, worst {1e3 * max(steps):.2f} of {options.runs} runs)   "
        f"{(weights + kv) / median / 1e9:.1f} GB/s"
    )
    print(
        json.dumps(
            {
                "benchmark": "decode_step",
                "size": options.size,
                "dtype": engine.dtype,
                "threads": engine._backend.pool.size,
                "isa": engine._backend.isa,
                "machine": platform.machine(),
                "tokens": options.tokens,
                "ms_per_step": round(1e3 * median, 3),
                "ms_best": round(1e3 * min(steps), 3),
                "ms_worst": round(1e3 * max(steps), 3),
                "gb_per_s": round((weights + kv) / median / 1e9, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
