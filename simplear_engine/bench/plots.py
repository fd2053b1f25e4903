"""Pictures of what was measured. matplotlib is needed by who calls load_pyplot() and by nobody else."""

from pathlib import Path

from simplear_engine.bench.results import stem
from simplear_engine.errors import UnsupportedError


def load_pyplot():
    """To be called before measuring: nobody likes to wait for numbers and then lose the picture."""
    try:
        import matplotlib
    except ImportError:
        raise UnsupportedError("plots need matplotlib: pip install 'simplear-engine[bench]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def step_cost(document: dict, folder: Path) -> list[Path]:
    """Milliseconds of a step by its rows, one picture a context, with the least that the roofs allow."""
    plt = load_pyplot()
    paths = []
    for context in sorted({row["context"] for row in document["rows"]}):
        figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
        rows = [row for row in document["rows"] if row["context"] == context]
        for index, dtype in enumerate(dict.fromkeys(row["dtype"] for row in rows)):
            mine = sorted((row for row in rows if row["dtype"] == dtype), key=lambda row: row["rows"])
            x, color = [row["rows"] for row in mine], f"C{index}"
            spread = [[row["ms"] - row["p10_ms"] for row in mine], [row["p90_ms"] - row["ms"] for row in mine]]
            axes.errorbar(x, [row["ms"] for row in mine], spread, marker=".", capsize=2, color=color, label=dtype)
            axes.plot(x, [row["model_ms"] for row in mine], "--", color=color, label=f"{dtype}, the roofs")
        axes.set(xscale="log", yscale="log", xlabel="query rows of the step", ylabel="ms")
        axes.set_title(f"{document['model']}, context {context}, {_machine(document)}", fontsize=8)
        x = sorted({row["rows"] for row in rows})
        axes.set_xticks(x, labels=[str(value) for value in x])
        axes.set_xticks([], minor=True)
        _plain_numbers(axes.yaxis)
        paths.append(_write(plt, figure, axes, folder, f"{stem(document)}-context-{context}.png"))
    return paths


def roofline(document: dict, folder: Path) -> list[Path]:
    """GFLOP/s of every timed case by its FLOPs a byte, below the measured roofs."""
    plt = load_pyplot()
    rows = [row for row in document["rows"] if row.get("flop_per_byte")]
    if not rows:
        return []
    read, peaks = document["roofs"]["read_gb_s"], document["roofs"]["gemm_gflop_s"]
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    left, right = (edge([row["flop_per_byte"] for row in rows]) for edge in (min, max))
    x = [left / 2 * (4 * right / left) ** (i / 200) for i in range(201)]
    for dtype, peak in peaks.items():
        (line,) = axes.plot(x, [min(read * value, peak) for value in x], label=f"roof, {dtype}", linewidth=1)
        axes.axhline(peak, color=line.get_color(), linewidth=0.5, linestyle=":")
    markers = "os^vD<>Pp*hX"
    for index, op in enumerate(dict.fromkeys(row["op"] for row in rows)):
        mine = [row for row in rows if row["op"] == op]
        axes.scatter(
            [row["flop_per_byte"] for row in mine], [row["gflop_s"] for row in mine], s=16, label=op,
            marker=markers[index % len(markers)], color=f"C{index % 10}", alpha=0.7,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte, by the op's declaration", ylabel="GFLOP/s")
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    axes.set_title(f"ops, {_machine(document)}; above the slope: the inputs stayed in cache", fontsize=8)
    return [_write(plt, figure, axes, folder, f"{stem(document)}-roofline.png")]


def _plain_numbers(axis) -> None:
    """20 and not 2 x 10^1, also between powers of ten."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))


def _machine(document: dict) -> str:
    machine = document["machine"]
    return f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}"


def _write(plt, figure, axes, folder: Path, name: str) -> Path:
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, dpi=100)
    plt.close(figure)
    return folder / name
