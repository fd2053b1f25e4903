"""Times on a GPU, as tables: single ops beside a plain read, whole images, what a step costs the host.

    python benchmarks/gpu_tables.py --out benchmarks/results/nvidia-h200 --seconds 200

Writes gpu.json (everything), gpu.md (the tables) and gpu.png into the folder. Each op is checked against its reference
before it is timed, on arguments that were not in cache: a graph goes round through copies of them. Weights are random, on
which no time depends. What does not fit into the time is left out, and named in the output.
"""

import argparse
import json
import math
import resource
import sys
import time
from pathlib import Path

import numpy as np

from simplear_engine import Engine, _C
from simplear_engine.bench.machine import one_line, revision
from simplear_engine.config import ModelConfig
from simplear_engine.engine_options import open_backend
from simplear_engine.kernels import float8
from simplear_engine.kernels.op import all_ops
from simplear_engine.kernels.rope_append import bytes_of_key
from simplear_engine.testing.device_trial import cases_of
from simplear_engine.testing.device_trial import DeviceTrial
from simplear_engine.testing.random_checkpoint import SIZES
from simplear_engine.weights import weight_specs

CACHE_BYTES = 150 << 20  # three times the largest level-2 cache
BF16, FP8 = "bfloat16", float8.NAME
# (size, weights, pixels of a side, pictures at once), the most telling first.
IMAGES = [
    ("0.5b", BF16, 512, 1), ("0.5b", BF16, 1024, 1), ("0.5b", FP8, 1024, 1), ("0.5b", BF16, 512, 8),
    ("0.5b", BF16, 512, 32), ("0.5b", BF16, 512, 128), ("0.5b", FP8, 512, 128), ("1.5b", BF16, 512, 1),
    ("1.5b", BF16, 1024, 1), ("1.5b", FP8, 1024, 1), ("0.5b", FP8, 512, 1), ("0.5b", BF16, 1024, 8),
    ("0.5b", BF16, 1024, 32), ("0.5b", BF16, 1024, 128), ("1.5b", BF16, 512, 32), ("1.5b", BF16, 512, 128),
    ("1.5b", BF16, 1024, 32),
]  # fmt: skip
PROMPT, NEGATIVE = list(range(100, 170)), list(range(200, 230))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json, gpu.md and gpu.png")
    parser.add_argument("--seconds", type=float, default=200, help="when to begin nothing new (default: 200)")
    parser.add_argument("--device", default="cuda", help="cuda, or cuda:1 (default: cuda)")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    backend = open_backend(options.device, threads=None)
    found = {"device": backend.properties, "revision": revision(), "engine": str(_C.version), "left_out": []}
    found["read_gb_s"], found["copy_gb_s"] = bandwidths()
    print(f"{found['device']['name']}: read {found['read_gb_s']} GB/s, copy {found['copy_gb_s']} GB/s", flush=True)
    found["ops"] = ops(backend, found, time.monotonic() + options.seconds / 4)
    found["attention"] = attention_peers(found, time.monotonic() + options.seconds / 10)
    found["images"] = images(options.device, found, until)
    found["peers"] = peers(options.device, found, until)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "gpu.md").write_text(markdown(found))
    plot(found, options.out / "gpu.png")
    print(markdown(found))
    return (
        1 if any("error" in row for row in found["ops"] + found["attention"] + found["images"] + found["peers"]) else 0
    )


def bandwidths() -> tuple[float | None, float | None]:
    """GB/s of a read stream and of a copy, by torch; None without it."""
    try:
        import torch
    except ImportError:
        return None, None
    x, y = (torch.zeros(1 << 29, dtype=torch.float32, device="cuda") for _ in range(2))

    def gb_s(run, bytes_moved: int) -> float:
        times = []
        for _ in range(8):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return round(bytes_moved / min(times) / 1e9)

    return gb_s(lambda: torch.sum(x), x.nbytes), gb_s(lambda: y.copy_(x), 2 * x.nbytes)


def ops(backend, found: dict, until: float) -> list[dict]:
    rows = []
    for name, op in sorted(all_ops().items()):
        if "cuda" not in _C.cuda_op_impls().get(name, []):
            found["left_out"].append(f"op {name}: no CUDA kernel")
            continue
        for case in cases_of(op.bench_cases):
            if time.monotonic() > until:
                found["left_out"].append(f"op {name} {case.id}: no time")
                continue
            row = {"op": name, "case": case.id}
            try:
                bytes_moved = op.bytes_moved(case.axes, case.dtypes)
                copies = max(1, min(24, math.ceil(CACHE_BYTES / bytes_moved)))
                trial = DeviceTrial(op, "cuda", case, backend, copies)
                trial.run()
                trial.check()
                row["us"] = 1e6 * min(trial.seconds(4) for _ in range(5))
                row["gb_s"] = bytes_moved / row["us"] / 1e3
            except Exception as error:  # one op that fails must not cost the others their times
                row["error"] = one_line(error)
            rows.append(row)
            print(row, flush=True)
    return rows


def attention_peers(found: dict, until: float) -> list[dict]:
    """Attention kernels of others on the op's bench cases."""
    try:
        from attention_peers import cases, installed, microseconds, problem
    except ImportError as error:
        found["left_out"].append(f"attention of others: {error}")
        return []
    rows = []
    for name, prepare in installed():
        if prepare is None:
            found["left_out"].append(f"attention of {name}: not installed")
            continue
        for case in cases():
            if time.monotonic() > until:
                found["left_out"].append(f"attention of {name}, {case.id}: no time")
                continue
            row = {"peer": name, "case": case.id}
            try:
                row["us"] = microseconds(prepare, problem(case, "cuda"), CACHE_BYTES)
            except Exception as error:
                row["error"] = one_line(error)
            rows.append(row)
            print(row, flush=True)
    return rows


def random_tensors(model: ModelConfig):
    """Weights in bfloat16 on the GPU by torch, where it is there: the quickest way to gigabytes of numbers."""
    import torch

    generator = torch.Generator("cuda").manual_seed(0)
    return {
        name: torch.ones(spec.shape, dtype=torch.bfloat16, device="cuda")
        if "norm" in name
        else torch.empty(spec.shape, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02, generator=generator)
        for name, spec in weight_specs(model).items()
    }


def model_config(size: str) -> ModelConfig:
    values = dict(SIZES[size])
    num_text_tokens, num_codes = values.pop("num_text_tokens"), values.pop("num_codes")
    return ModelConfig(
        **values, head_dim=values["hidden_size"] // values["num_heads"], vocab_size=num_text_tokens + num_codes,
        visual_offset=num_text_tokens,
    )  # fmt: skip


def images(device: str, found: dict, until: float) -> list[dict]:
    rows, engine, built = [], None, None
    for size, dtype, pixels, count in IMAGES:
        if time.monotonic() > until:
            found["left_out"].append(f"{size} {dtype} {pixels} px x{count}: no time")
            continue
        # Where many pictures are drawn, their keys and values weigh as much as the weights.
        kv_dtype = FP8 if dtype == FP8 and count > 1 else BF16
        row = {"size": size, "pixels": pixels, "pictures": count, "dtype": dtype, "kv_dtype": kv_dtype}
        try:
            if built != (size, dtype, count):
                if engine is not None:
                    engine.close()
                engine = None  # its memory goes before the next one's is taken
                model = model_config(size)
                engine = Engine.from_weights(
                    model, random_tensors(model), device=device, dtype=dtype, kv_dtype=kv_dtype, max_pairs=count,
                    kv_cache_bytes=kv_bytes(model, count, pixels), max_queue=count,
                )  # fmt: skip
                built = (size, dtype, count)
            side = pixels // 16
            draw(engine, 1, side=4)
            before, cpu = engine.stats(), cpu_seconds()
            start = time.monotonic()
            draw(engine, count, side)
            row["seconds"] = time.monotonic() - start
            steps = engine.stats()["num_steps"] - before["num_steps"]
            row["pictures_s"] = count / row["seconds"]
            row["us_step"] = 1e6 * row["seconds"] / steps
            row["host_us_step"] = 1e6 * (cpu_seconds() - cpu) / steps
            if found["read_gb_s"]:
                row["floor_us_step"] = step_bytes(model, dtype, kv_dtype, pixels, count) / found["read_gb_s"] / 1e3
                row["exposed_us_layer"] = (row["us_step"] - row["floor_us_step"]) / model.num_layers
        except Exception as error:
            row["error"] = one_line(error)
            engine = built = None
        rows.append(row)
        print(row, flush=True)
    return rows


def peers(device: str, found: dict, until: float) -> list[dict]:
    """The same decoder in plain torch, one guided picture: us a step over the positions of 512 px."""
    try:
        import torch
        from torch_decoder import TorchDecoder
    except ImportError as error:
        found["left_out"].append(f"peers: {error}")
        return []
    model, rows, tensors = model_config("0.5b"), [], None
    for compiled in (False, True):
        name = "torch, a graph a step" + (", compiled" if compiled else "")
        if time.monotonic() > until:
            found["left_out"].append(f"{name}: no time")
            continue
        row = {"peer": name}
        try:
            if tensors is None:
                tensors = random_tensors(model)
                with Engine.from_weights(
                    model, tensors, device=device, dtype=BF16, max_pairs=1, kv_cache_bytes=kv_bytes(model, 1, 512)
                ) as engine:
                    wanted = engine.score_from_ids(PROMPT, np.zeros(1, np.int64))[0]
            decoder = TorchDecoder(model, tensors, 2, len(PROMPT) + 1024 + 8)
            logits = decoder.read(PROMPT)[0].cpu().numpy()
            difference = np.abs(logits - wanted).max() / wanted.std()
            if not difference < 0.2:
                raise ValueError(f"its logits are {difference:.2f} deviations from the engine's")
            row["us_step"] = 1e6 * decoder.seconds_per_step(1024, 6.0, compiled)
        except Exception as error:
            row["error"] = one_line(error)
        torch.cuda.empty_cache()
        rows.append(row)
        print(row, flush=True)
    return rows


def step_bytes(model: ModelConfig, dtype: str, kv_dtype: str, pixels: int, count: int) -> float:
    """What a step reads: matrices, visual rows of the head, keys and values of a picture that is half done."""
    shapes = [spec.shape for name, spec in weight_specs(model).items() if ".layers." in name and len(spec.shape) == 2]
    weights = sum(math.prod(shape) for shape in shapes) + model.num_codes * model.hidden_size
    keys = count * (len(PROMPT) + len(NEGATIVE) + (pixels // 16) ** 2)
    per_key = 2 * model.num_layers * model.num_kv_heads * bytes_of_key(model.head_dim, kv_dtype)  # and its value
    return weights * (1 if dtype == FP8 else 2) + keys * per_key


def kv_bytes(model: ModelConfig, count: int, pixels: int) -> int:
    from simplear_engine.forward import cache_block_bytes

    largest = max(other for _, _, other, pictures in IMAGES if pictures == count)
    blocks = 2 * count * (((max(largest, pixels) // 16) ** 2 + 128) // 16 + 1)
    return blocks * cache_block_bytes(model, "bfloat16")


def draw(engine, count: int, side: int) -> None:
    engine.generate_from_ids(
        PROMPT, NEGATIVE, num_images=count, height=16 * side, width=16 * side, guidance_scale=6.0, seed=0,
        speculation=None,
    )  # fmt: skip


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def markdown(found: dict) -> str:
    read = found["read_gb_s"]
    lines = [
        f"# {found['device']['name']}, {found['revision'] or found['engine']}",
        "",
        f"A plain read: {read} GB/s, a copy: {found['copy_gb_s']} GB/s, in the same run.",
        "",
        "| op | case | us | GB/s | of a read |",
        "|---|---|---|---|---|",
    ]
    for row in found["ops"]:
        if "error" in row:
            lines.append(f"| {row['op']} | {row['case']} | WRONG: {row['error']} | | |")
            continue
        share = f"{row['gb_s'] / read:.0%}" if read else ""
        lines.append(f"| {row['op']} | {row['case']} | {row['us']:.1f} | {row['gb_s']:.0f} | {share} |")
    ours = {row["case"]: row["us"] for row in found["ops"] if row["op"] == "paged_attention" and "us" in row}
    lines += ["", "| attention of | case | us | times ours |", "|---|---|---|---|"] if found["attention"] else []
    for row in found["attention"]:
        told = row["error"] if "error" in row else f"{row['us']:.1f}"
        ratio = f"{row['us'] / ours[row['case']]:.2f}" if "us" in row and row["case"] in ours else ""
        lines.append(f"| {row['peer']} | {row['case']} | {told} | {ratio} |")
    lines += [
        "",
        "Floor: the time that a read of a step's weights, keys and values takes; exposed: what a step takes beyond it, for each "
        "layer (with the start of the picture in it).",
        "",
        "| model | weights | keys | px | pictures | s | pictures/s | us a step | its floor | exposed us a layer | CPU us a step |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["images"]:
        start = f"| {row['size']} | {row['dtype']} | {row['kv_dtype']} | {row['pixels']} | {row['pictures']} |"
        if "error" in row:
            lines.append(f"{start} {row['error']} | | | | | |")
        else:
            floor = f"{row['floor_us_step']:.0f} | {row['exposed_us_layer']:.1f}" if read else " | "
            lines.append(
                f"{start} {row['seconds']:.2f} | {row['pictures_s']:.2f} | {row['us_step']:.0f} | {floor} | "
                f"{row['host_us_step']:.1f} |"
            )
    same = ("0.5b", BF16, 512, 1)
    ours = [
        row.get("us_step")
        for row in found["images"]
        if (row["size"], row["dtype"], row["pixels"], row["pictures"]) == same
    ]
    for row in found["peers"]:
        told = row.get("error") or f"{row['us_step']:.0f} us a step of 0.5b at 512 px"
        ratio = f", {row['us_step'] / ours[0]:.2f} times ours" if "us_step" in row and ours and ours[0] else ""
        lines += ["", f"{row['peer']}: {told}{ratio}."]
    lines += ["", "Left out: " + ("; ".join(found["left_out"]) or "nothing") + ".", ""]
    return "\n".join(lines)


def plot(found: dict, path: Path) -> None:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("matplotlib is not installed: no picture", file=sys.stderr)
        return
    rows = [row for row in found["images"] if "error" not in row]
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for key in dict.fromkeys((row["size"], row["dtype"], row["pixels"]) for row in rows):
        mine = sorted(
            (row["pictures"], row["pictures_s"]) for row in rows if (row["size"], row["dtype"], row["pixels"]) == key
        )
        axes.plot(*np.array(mine).T, marker="o", label=f"{key[0]}, {key[1]}, {key[2]} px")
    axes.set(xscale="log", yscale="log", xlabel="pictures at once", ylabel="pictures a second")
    axes.set_title(found["device"]["name"])
    if rows:
        axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
