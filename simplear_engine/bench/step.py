"""`step`: a whole decode step, beside what the machine could do at best.

The model of a step: it reads every weight once and every key and value of its sequences, and it multiplies. Whichever
takes longer at the measured roofs is the least that it can cost.
"""

from contextlib import ExitStack

from simplear_engine.backend import DTYPES
from simplear_engine.bench import arguments, plots, progress, results, shapes
from simplear_engine.bench.machine import Roofs, barrier
from simplear_engine.bench.models import model_folder
from simplear_engine.bench.shapes import Shape
from simplear_engine.bench.step_rig import StepRig
from simplear_engine.bench.timing import Times, turn
from simplear_engine.errors import InvalidRequestError
from simplear_engine.testing.random_checkpoint import SIZES

KEY = ("dtype", "rows", "context", "window")
TURN_SECONDS = 0.03
MAX_ROWS, MAX_WINDOW, MAX_CONTEXT = 4096, 64, 1 << 20

EXAMPLES = """\
examples:
  python -m simplear_engine.bench step
      random 0.5b weights, 1 to 64 rows, contexts of 32, 900 and 4096 keys
  python -m simplear_engine.bench step --dtype bfloat16,float32 --rows 2,16,64 --context 900 --plot
  python -m simplear_engine.bench step --window 1,4,16 --context 900
      one guided pair with drafts: 2, 8 and 32 rows that read the same keys
  python -m simplear_engine.bench step --rows 2 --context 900 --against HEAD~1

rows: query rows of a step. 2 are one guided picture, 16 are eight of them; 1 is a picture without guidance.
model: the larger of bytes / measured read and FLOPs / measured matrix product. Nothing can be faster than that.
"""


def add_arguments(parser) -> None:
    parser.add_argument("--size", choices=SIZES, help="random weights of this size (default: 0.5b)")
    parser.add_argument("--model", help="a checkpoint's folder, or default for the embedded model, in place of --size")
    parser.add_argument("--dtype", default="bfloat16", help=f"some of {', '.join(DTYPES)} (default: bfloat16)")
    parser.add_argument("--rows", help="query rows of a step (default: 1,2,4,8,16,32,64)")
    parser.add_argument("--window", help="in place of --rows: draft windows of one guided pair, 1 being no draft")
    parser.add_argument("--context", default="32,900,4096", help="keys that a row reads (default: 32,900,4096)")
    parser.add_argument("--rounds", default="9", help="turns that each configuration gets (default: 9)")


def wanted_shapes(options) -> list[Shape]:
    if options.rows and options.window:
        raise InvalidRequestError("--rows, --window: expected one of the two")
    contexts = arguments.integers("--context", options.context, 1, MAX_CONTEXT)
    if options.window:
        windows = arguments.integers("--window", options.window, 1, MAX_WINDOW)
        return [shapes.with_window(window, context) for context in contexts for window in windows]
    rows = arguments.integers("--rows", options.rows or "1,2,4,8,16,32,64", 1, MAX_ROWS)
    return [Shape(count, context) for context in contexts for count in rows]


def run(options) -> dict:
    wanted = wanted_shapes(options)
    dtypes = arguments.one_of_each("--dtype", options.dtype, DTYPES)
    (rounds,) = arguments.integers("--rounds", options.rounds, 1, 1000, one=True)
    with ExitStack() as stack:
        folder, name = stack.enter_context(model_folder(options.size, options.model, default="0.5b"))
        rigs = {dtype: StepRig(folder, dtype, wanted, options.threads) for dtype in dtypes}
        for rig in rigs.values():
            stack.callback(rig.close)
        return measure(name, rigs, wanted, rounds)


def measure(name: str, rigs: dict[str, StepRig], wanted: list[Shape], rounds: int) -> dict:
    backend = next(iter(rigs.values())).backend
    cells = [(dtype, shape) for dtype in rigs for shape in wanted]
    with progress.bar(total=len(cells), desc="checking") as bar:
        for rig in rigs.values():
            rig.check_greedy()
            rig.take_over(wanted)
            for shape in wanted:
                rig.check_rows(shape)
                bar.update()
    roofs, barriers = Roofs(backend), barrier(backend.pool)
    seconds: dict = {cell: [] for cell in cells}
    for _ in progress.bar(range(rounds), desc="timing"):
        roofs.measure(*rigs)
        for dtype, shape in cells:
            seconds[dtype, shape] += turn(lambda rig=rigs[dtype], shape=shape: rig.run(shape), TURN_SECONDS)
    rows = [row_of(rigs[dtype], shape, Times.of(seconds[dtype, shape]), roofs, rounds) for dtype, shape in cells]
    return results.document(
        "step", backend, rows, KEY, "ms", model=name, rounds=rounds,
        roofs={**roofs.fields(), "barrier": barriers.fields("us")},
    )  # fmt: skip


def row_of(rig: StepRig, shape: Shape, times: Times, roofs: Roofs, rounds: int) -> dict:
    weights, keys = rig.bytes_read(shape)
    flops, peak = rig.flops(shape), roofs.gemm(rig.dtype)
    read_seconds = (weights + keys) / roofs.read
    gemm_seconds = flops / peak if peak else 0.0
    return {
        "dtype": rig.dtype,
        **shapes.fields(shape),
        **times.fields("ms"),
        "weight_bytes": weights,
        "kv_bytes": keys,
        "flops": flops,
        "gb_s": (weights + keys) / times.median / 1e9,
        "read_share": read_seconds / times.median,
        "gemm_share": gemm_seconds / times.median if peak else None,
        "model_read_ms": read_seconds * 1e3,
        "model_gemm_ms": gemm_seconds * 1e3 if peak else None,
        "model_ms": max(read_seconds, gemm_seconds) * 1e3,
        "ms_by_op": {op: spent * 1e3 for op, spent in rig.seconds_by_op(shape, max(2, rounds // 3)).items()},
    }


def lines(document: dict) -> list[str]:
    roofs = document["roofs"]
    peaks = ", ".join(f"{dtype} {peak:.0f} GFLOP/s" for dtype, peak in roofs["gemm_gflop_s"].items())
    told = [
        f"{document['model']}: read {roofs['read_gb_s']:.1f} GB/s; matrix product with many rows: {peaks or 'no case'}",
        f"barrier of all threads: {roofs['barrier']['us']:.2f} us "
        f"(p10 {roofs['barrier']['p10_us']:.2f}, p90 {roofs['barrier']['p90_us']:.2f})",
        "",
        f"{'dtype':<9} {'rows':>4} {'window':>6} {'context':>7} {'ms':>9} {'p10':>9} {'p90':>9} {'GB/s':>6} "
        f"{'of read':>7} {'of GEMM':>7} {'model ms':>9} {'x model':>7}",
    ]
    for row in document["rows"]:
        gemm = "-" if row["gemm_share"] is None else f"{row['gemm_share']:.0%}"
        told.append(
            f"{row['dtype']:<9} {row['rows']:>4} {row['window']:>6} {row['context']:>7} {row['ms']:>9.3f} "
            f"{row['p10_ms']:>9.3f} {row['p90_ms']:>9.3f} {row['gb_s']:>6.1f} {row['read_share']:>7.0%} {gemm:>7} "
            f"{row['model_ms']:>9.3f} {row['ms'] / row['model_ms']:>7.2f}"
        )
    told += ["", "ms by op (timed apart)"]
    for row in document["rows"]:
        spent = ", ".join(f"{op} {ms:.3f}" for op, ms in row["ms_by_op"].items())
        told.append(f"{row['dtype']:<9} {row['rows']:>4} {row['window']:>6} {row['context']:>7}  {spent}")
    return told


plot = plots.step_cost
