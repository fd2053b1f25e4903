"""Microbenchmarks of single ops, for kernel developers.

    python -m simplear_engine.bench list
    python -m simplear_engine.bench op linear --impl avx512_bf16 --case N2
    python -m simplear_engine.bench op paged_attention --impl avx2,avx512 --json

Every figure is taken after the implementation has passed the check against the reference on that very case, in the same
process; one that fails is reported and not timed. Cases, bytes and FLOPs come from the op's declaration. Bandwidth is
also given as a share of a plain read of 256 MiB that is measured between the cases, because a shared machine drifts.
Inputs stay in cache from call to call where they fit: figures of small cases are compute figures.
"""

import argparse
import json
import statistics
import sys
import time

from simplear_engine import _C
from simplear_engine.errors import InvalidRequestError, SimplearError
from simplear_engine.kernels.op import Case, Op, all_ops
from simplear_engine.testing.op_trial import Trial

SECONDS = 0.5  # of measurement for each figure
MIN_CALLS = 5
READ_VALUES = 1 << 26  # int32 values of the yardstick read: more than any cache holds


def seconds_per_call(trial: Trial, seconds: float = SECONDS) -> list[float]:
    """Seconds of each call, after two that do not count."""
    for _ in range(2):
        trial.run()
    times: list[float] = []
    while len(times) < MIN_CALLS or sum(times) < seconds:
        start = time.perf_counter()
        trial.run()
        times.append(time.perf_counter() - start)
    return times


def read_bandwidth(pool: _C.ThreadPool) -> float:
    """Bytes a second that all threads together read from memory."""
    case = Case({"N": READ_VALUES, "T": pool.size})
    trial = Trial(all_ops()["read_stream"], _C.chosen_isa(), case, pool)
    return 4 * READ_VALUES / statistics.median(seconds_per_call(trial, seconds=0.3))


def measure(op: Op, impl: str, case: Case, pool: _C.ThreadPool) -> dict:
    """One row of the table: {"op", "impl", "case", "us", "p10_us", "p90_us", "gb_s", "gflop_s", "read_share"} or, where
    the check fails, {"op", "impl", "case", "error"}."""
    row = {"op": op.name, "impl": impl, "case": case.id, "threads": pool.size}
    trial = Trial(op, impl, case, pool)
    trial.run()
    try:
        trial.check()
    except AssertionError as error:
        return {**row, "error": " ".join(str(error).split())[:200]}
    times = sorted(seconds_per_call(trial))
    median = statistics.median(times)
    row |= {
        "us": median * 1e6,
        "p10_us": times[len(times) // 10] * 1e6,
        "p90_us": times[-1 - len(times) // 10] * 1e6,
    }
    if op.flops is not None:
        row["gflop_s"] = op.flops(case.axes) / median / 1e9
    if op.bytes_moved is not None:
        rate = op.bytes_moved(case.axes, case.dtypes) / median
        row |= {"gb_s": rate / 1e9, "read_share": rate / read_bandwidth(pool)}
    return row


def line_of(row: dict) -> str:
    start = f"{row['op']:<16} {row['impl']:<12} {row['case']:<58}"
    if "error" in row:
        return f"{start} WRONG, not timed: {row['error']}"
    text = f"{start} {row['us']:>10.1f} us (p10 {row['p10_us']:.1f}, p90 {row['p90_us']:.1f})"
    if "gflop_s" in row:
        text += f"  {row['gflop_s']:7.1f} GFLOP/s"
    if "gb_s" in row:
        text += f"  {row['gb_s']:6.1f} GB/s, {row['read_share']:.0%} of a read"
    return text


def list_ops() -> int:
    for name, op in sorted(all_ops().items()):
        print(f"{name:<18} {', '.join(sorted(_C.op_impls().get(name, []))):<44} {len(op.bench_cases)} cases")
    return 0


def bench_ops(options) -> int:
    ops = all_ops()
    names = list(ops) if options.name == "all" else [options.name]
    if unknown := [name for name in names if name not in ops]:
        raise InvalidRequestError(f"op {unknown[0]}: expected all or one of {', '.join(sorted(ops))}")
    impls = options.impl.split(",") if options.impl else [_C.chosen_isa()]
    pool = _C.ThreadPool(options.threads or _C.default_num_threads())
    rows = []
    for name in names:
        for case in ops[name].bench_cases:
            if options.case and options.case not in case.id:
                continue
            for impl in impls:
                rows.append(measure(ops[name], impl, case, pool))
                print(line_of(rows[-1]), file=sys.stderr if options.json else sys.stdout, flush=True)
    if not rows:
        raise InvalidRequestError(
            f"no case matches {options.case!r}; `python -m simplear_engine.bench list` counts them"
        )
    if options.json:
        print(json.dumps(rows))
    return 1 if any("error" in row for row in rows) else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m simplear_engine.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="ops, their implementations and how many cases each has")
    op = commands.add_parser("op", help="time one op, or all")
    op.add_argument("name", help="name of an op, or all")
    op.add_argument("--impl", help="implementations, comma-separated (default: the one this processor chooses)")
    op.add_argument("--case", help="only cases whose name contains this")
    op.add_argument("--threads", type=int, help="default: physical cores")
    op.add_argument("--json", action="store_true", help="rows as JSON on stdout, the table on stderr")
    options = parser.parse_args(arguments)
    try:
        return list_ops() if options.command == "list" else bench_ops(options)
    except SimplearError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
