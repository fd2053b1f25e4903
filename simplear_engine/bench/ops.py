"""`list` and `op`: single ops on the cases that their declarations name.

Every figure is taken after the implementation has passed the check against the reference on that very case, in the same
process; one that fails is reported and not timed. Implementations of a case take turns. Inputs stay in cache from call
to call where they fit: figures of small cases are compute figures.

The floor of a case is what reading its bytes from memory takes, or its arithmetic at the pace of the fastest product of
matrices (machine.py), whichever is longer, one barrier of all threads and the call from Python. Where a case stays in
cache it may be beaten.
"""

import sys

from simplear_engine import _C
from simplear_engine.backend import CpuBackend
from simplear_engine.bench import arguments, plots, progress, results
from simplear_engine.bench.machine import Roofs, barrier, one_line
from simplear_engine.bench.timing import Times, in_turns, turn
from simplear_engine.errors import InvalidRequestError, UnsupportedError
from simplear_engine.kernels.op import Case, Op, all_ops
from simplear_engine.kernels.quantization import QUANTIZED
from simplear_engine.kernels.triton_launch import has_implementation
from simplear_engine.testing.op_trial import Trial
from simplear_engine.testing.triton_trial import TritonTrial

KEY = ("op", "impl", "case")
ROUNDS = 5
GRAPH_RUNS = 20  # of a Triton op in one CUDA graph, so that starting it from Python is no part of its time
TURN_SECONDS = 0.1
MIN_RUNS = 2
FAR_FROM_FLOOR = 0.5  # of it, below which a case is named once more at the end

EXAMPLES = """\
examples:
  python -m simplear_engine.bench op linear
  python -m simplear_engine.bench op linear --isa avx2,avx512 --dtype float32 --case N2
      only cases whose name contains N2 and that have a float32 argument, on two instruction sets in turns
  python -m simplear_engine.bench op all --isa all --threads 1 --json
  python -m simplear_engine.bench op all --plot
  python -m simplear_engine.bench op linear --case N2 --against HEAD~1
      before and after; see also simplear_engine.bench.compare for a kernel outside the tree
"""


def add_arguments(parser) -> None:
    parser.add_argument("name", help="name of an op, or all")
    parser.add_argument(
        "--isa", "--impl", dest="impl", metavar="NAMES",
        help="implementations, comma-separated, or all (default: the one that is chosen here). On a CPU there is one "
        "for each instruction set; triton needs a GPU, torch and Triton",
    )  # fmt: skip
    parser.add_argument("--dtype", help="only cases that choose this type for an argument")
    parser.add_argument("--case", help="only cases whose name contains this")


class Recorded:
    """A trial's call in a program, as a step would run it: the time of a run is the kernel's and not Python's. Without a
    trial the program is empty."""

    def __init__(self, trial: Trial | None, pool: _C.ThreadPool):
        self._program, self._pool = _C.Program(), pool
        self._plan = _C.StepPlan(max_tokens=1, max_pairs=1, max_logit_rows=1, max_draws=1, max_blocks_per_seq=1)
        if trial is not None:
            trial.op.record(self._program, trial.impl, trial._args, **trial.case.scalars)

    def run(self) -> None:
        self._program.run(self._plan, self._pool)


def known_ops() -> list[dict]:
    """What `list` shows."""
    return [
        {
            "op": name,
            "impls": sorted(_C.op_impls().get(name, [])),
            "cases": [case.id for case in op.bench_cases],
            "dtypes": sorted({dtype for case in op.bench_cases for dtype in case.dtypes.values()}),
        }
        for name, op in sorted(all_ops().items())
    ]


def list_lines(rows: list[dict]) -> list[str]:
    return [
        f"{row['op']:<18} {', '.join(row['impls']):<44} {len(row['cases']):>3} cases  {', '.join(row['dtypes'])}"
        for row in rows
    ]


def cases_of(op: Op, part: str | None, dtype: str | None) -> list[Case]:
    return [
        case
        for case in op.bench_cases
        if (not part or part in case.id) and (not dtype or dtype in case.dtypes.values())
    ]


def run(options) -> dict:
    ops = all_ops()
    names = list(ops) if options.name == "all" else [options.name]
    if unknown := [name for name in names if name not in ops]:
        raise InvalidRequestError(f"op {unknown[0]}: expected all or one of {', '.join(sorted(ops))}")
    known = sorted({dtype for op in ops.values() for arg in op.args.values() for dtype in arg.dtypes})
    if options.dtype:
        arguments.one_of_each("--dtype", options.dtype, known)
    chosen = [(ops[name], case) for name in names for case in cases_of(ops[name], options.case, options.dtype)]
    if not chosen:
        raise InvalidRequestError(
            f"no case of {options.name} matches --case {options.case!r} --dtype {options.dtype!r}; "
            f"`python -m simplear_engine.bench list` counts them"
        )
    backend = CpuBackend(options.threads)
    impls = {name: implementations(name, options.impl, backend) for name in {op.name for op, _ in chosen}}
    roofs, barriers, rows = Roofs(backend), barrier(backend.pool), []
    call = Times.of(turn(Recorded(None, backend.pool).run, TURN_SECONDS))
    for op, case in progress.bar(chosen, desc="ops"):
        roofs.measure(unit_of(op, case))
        for row in measure(op, impls[op.name], case, backend.pool):
            if "us" in row and row["impl"] in _C.compiled_isas():
                row |= floor(op, case, roofs, barriers.median + call.median, row["us"])
            rows.append(row)
            progress.write(line_of(row), sys.stderr if options.json else sys.stdout)
    fixed = {"barrier": barriers.fields("us"), "call": call.fields("us")}
    return results.document("op", backend, rows, KEY, "us", roofs={**roofs.fields(), **fixed})


def unit_of(op: Op, case: Case) -> str:
    """The dtype whose product of matrices bounds the arithmetic of a case. Without such a product it is float32's, which
    keeps every vector unit busy."""
    return case.dtypes[op.multiplies] if op.multiplies else "float32"


def floor(op: Op, case: Case, roofs: Roofs, fixed_seconds: float, us: float) -> dict:
    """{"floor_us", "floor_share", "floor_of"}"""
    seconds = {"reading": 0.0, "arithmetic": 0.0}
    if op.bytes_moved is not None:
        seconds["reading"] = op.bytes_moved(case.axes, case.dtypes) / roofs.read
    if op.flops is not None and (peak := roofs.gemm(unit_of(op, case))):
        seconds["arithmetic"] = op.flops(case.axes) / peak
    longer = max(seconds, key=seconds.__getitem__)
    floor_us = (seconds[longer] + fixed_seconds) * 1e6
    return {"floor_us": floor_us, "floor_share": floor_us / us, "floor_of": longer}


def implementations(op: str, asked: str | None, backend: CpuBackend) -> list[str]:
    """The implementations of an op that were asked for and that run here."""
    here = [impl for impl in _C.op_impls()[op] if impl not in _C.compiled_isas() or impl in _C.available_isas()]
    here += ["triton"] if has_implementation(op) else []
    if asked == "all":
        return [isa for isa in _C.compiled_isas() if isa in here]
    chosen = asked.split(",") if asked else [backend.implementation(op)]
    for impl in chosen:
        if impl not in here:
            raise UnsupportedError(f"op {op} has no implementation named {impl} here; it has {', '.join(here)}")
    if "triton" in chosen and not _C.cuda_devices()[0]:
        raise UnsupportedError(f"op {op}: Triton needs a GPU to be timed, and there is none here")
    return chosen


def measure(op: Op, impls: list[str], case: Case, pool: _C.ThreadPool) -> list[dict]:
    """A row of the table for each implementation; where the check fails, it has "error" and no times."""
    rows, runs, before = [], {}, {}
    graph_runs = 1 if op.moves_on else GRAPH_RUNS
    for impl in impls:
        if impl == "triton" and case.dtypes.get("weight") in QUANTIZED:
            continue  # packed for the CPU's instructions
        row = {"op": op.name, "impl": impl, "case": case.id, "dtypes": dict(case.dtypes)}
        trial = TritonTrial(op, case) if impl == "triton" else Trial(op, impl, case, pool)
        trial.run()
        try:
            trial.check()
            runs[impl] = trial.repeated(graph_runs) if impl == "triton" else Recorded(trial, pool).run
            if op.moves_on:
                before[impl] = trial.rewind
        except AssertionError as error:
            row["error"] = one_line(error)
        rows.append(row)
    times = in_turns(runs, ROUNDS, TURN_SECONDS, MIN_RUNS, before)
    for row in rows:
        if row["impl"] in times:
            of_impl = times[row["impl"]]
            if row["impl"] == "triton":
                of_impl = Times(tuple(seconds / graph_runs for seconds in of_impl.seconds))
            row |= figures(op, case, of_impl)
    return rows


def figures(op: Op, case: Case, times: Times) -> dict:
    found = times.fields("us")
    if op.flops is not None:
        found["gflop_s"] = op.flops(case.axes) / times.median / 1e9
    if op.bytes_moved is not None:
        found["gb_s"] = op.bytes_moved(case.axes, case.dtypes) / times.median / 1e9
        if op.flops is not None:
            found["flop_per_byte"] = op.flops(case.axes) / op.bytes_moved(case.axes, case.dtypes)
    return found


def line_of(row: dict) -> str:
    start = f"{row['op']:<17} {row['impl']:<12} {row['case']:<62}"
    if "error" in row:
        return f"{start} WRONG, not timed: {row['error']}"
    text = f"{start} {row['us']:>10.1f} us (p10 {row['p10_us']:.1f}, p90 {row['p90_us']:.1f})"
    if "gflop_s" in row:
        text += f"  {row['gflop_s']:7.1f} GFLOP/s"
    if "gb_s" in row:
        text += f"  {row['gb_s']:6.1f} GB/s"
    if "floor_us" in row:
        text += f"  {row['floor_share']:5.0%} of its floor ({row['floor_of']})"
    return text


def lines(document: dict) -> list[str]:
    """What is left to say: the rows were printed as they came."""
    roofs, rows = document["roofs"], [row for row in document["rows"] if "floor_us" in row]
    peaks = ", ".join(f"{dtype} {peak:.0f} GFLOP/s" for dtype, peak in roofs["gemm_gflop_s"].items())
    far = [row for row in rows if row["floor_share"] < FAR_FROM_FLOOR]
    return [
        f"in between: a plain read {roofs['read_gb_s']:.1f} GB/s; products of many rows: {peaks or 'no case'}; "
        f"a barrier {roofs['barrier']['us']:.2f} us, a call {roofs['call']['us']:.2f} us",
        f"{len(far)} of {len(rows)} measurements reach less than {FAR_FROM_FLOOR:.0%} of their floor"
        + "".join(
            f"\n{row['op']:<17} {row['impl']:<12} {row['case']:<62} {row['us']:>10.1f} us, floor {row['floor_us']:.1f} us: "
            f"{row['floor_share']:.0%}"
            for row in sorted(far, key=lambda row: row["floor_share"])
        ),
    ]


plot = plots.roofline
