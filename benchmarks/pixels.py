"""Codes to pixels: our folded Cosmos decoder against the same folded network in torch, channels-last.

    python benchmarks/pixels.py
    python benchmarks/pixels.py --sizes 512 --layers

Random weights of the published DV8x16x16. Both sides compute the layers that image/folding.py makes, so the difference
is the kernels' and not the network's. A run decodes one picture with each side in turn; CPU seconds are those of all
threads of the process, and both sides get time to put their threads to sleep before the other one is measured. Before
anything is timed, both results are compared with float32 in torch: ours may not be further from it than torch's own.
Without torch installed, ours alone is timed and checked against NumPy at 64 px.
"""

import argparse
import json
import platform
import sys
import tempfile
import time

import numpy as np

from simplear_engine import _C
from simplear_engine.image import CosmosTokenizer, folding, network, pixels
from simplear_engine.image.backend import ReferenceBackend
from simplear_engine.image.random import DV8X16X16, write_random_tokenizer
from simplear_engine.image.source import open_tokenizer

try:
    import torch
except ImportError:
    torch = None

SETTLE_SECONDS = 0.3  # longer than any OpenMP runtime spins after its last parallel region
MAX_ERROR_RATIO = 1.25  # of our error to torch's, both to float32


class TorchOps:
    """The op table of image/network.py in torch: [B, C, h, w] tensors whose memory is [B, h, w, C]."""

    fold_dtype = np.float32

    def __init__(self, dtype):
        self.dtype = dtype
        self.seconds = None  # of each call while a list stands here

    def pack_conv(self, weight, bias, full_precision=False):
        dtype = torch.float32 if full_precision else self.dtype
        weight = torch.from_numpy(np.array(weight, np.float32)).to(dtype, memory_format=torch.channels_last)
        return weight, torch.from_numpy(np.array(bias, np.float32)).to(dtype)

    def pack_upsample(self, corners, bias):
        return [self.pack_conv(corner, bias) for corner in corners]

    def pack_norm(self, weight, bias):
        return tuple(torch.from_numpy(np.array(values, np.float32)).to(self.dtype) for values in (weight, bias))

    def conv2d(self, x, conv, residual=None, output_dtype=None):
        def run():
            weight, bias = conv.packed
            y = torch.nn.functional.conv2d(x.to(weight.dtype), weight, bias, conv.stride, conv.pad)
            if residual is not None:
                y += residual
            return y.to(torch.float32 if output_dtype else self.dtype)

        return self._timed(run)

    def upsample_conv2d(self, x, upsample):
        def run():
            batch, _, height, width = x.shape
            channels = upsample.packed[0][0].shape[0]
            y = torch.empty((batch, 2 * height, 2 * width, channels), dtype=self.dtype).permute(0, 3, 1, 2)
            for corner, (weight, bias) in enumerate(upsample.packed):
                row, column = divmod(corner, 2)
                # Padded on both sides, because padding one side only would copy the input; one row and column too many.
                grown = torch.nn.functional.conv2d(x, weight, bias, padding=1)
                y[:, :, row::2, column::2] = grown[:, :, row : row + height, column : column + width]
            return y

        return self._timed(run)

    def group_norm(self, x, norm, silu):
        def run():
            y = torch.nn.functional.group_norm(x, norm.groups, *norm.packed, 1e-6)
            return torch.nn.functional.silu(y, inplace=True) if silu else y

        return self._timed(run)

    def spatial_attention(self, qkv, residual):
        def run():
            q, k, v = (part.flatten(2).mT.unsqueeze(1) for part in qkv.chunk(3, 1))
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return residual + attended.squeeze(1).mT.unflatten(2, residual.shape[2:])

        return self._timed(run)

    def _timed(self, run):
        start = time.perf_counter()
        y = run()
        if self.seconds is not None:
            self.seconds.append(time.perf_counter() - start)
        return y


class TorchDecoder:
    def __init__(self, source, dtype):
        self.ops = TorchOps(dtype)
        self._layers = folding.fold_decoder(source.config, source.read, self.ops)
        self._patch_size = source.config.patch_size

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """float32 [B, h, w, D] -> float32 [B, 3, H, W]."""
        with torch.inference_mode():
            x = torch.from_numpy(codes).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
            patches = network.run(self._layers, self.ops, x).permute(0, 2, 3, 1).contiguous()
        return pixels.patches_to_image(patches.numpy(), self._patch_size)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))


def measured(run) -> tuple[float, float]:
    """(wall seconds, CPU seconds of all threads)."""
    time.sleep(SETTLE_SECONDS)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def summary(name: str, times: list[tuple[float, float]]) -> dict:
    walls, cpus = (sorted(column) for column in zip(*times, strict=True))
    middle = len(times) // 2
    row = {"wall_s": walls[middle], "wall_min_s": walls[0], "cpu_s": cpus[middle], "cpu_min_s": cpus[0]}
    print(f"  {name:<6} {row['wall_s']:7.3f} s (best {row['wall_min_s']:.3f})   "
          f"{row['cpu_s']:7.3f} CPU-s (best {row['cpu_min_s']:.3f})")  # fmt: skip
    return {f"{name}_{key}": round(value, 4) for key, value in row.items()}


def check_against_numpy(tokenizer, source, rng) -> None:
    indices = rng.integers(0, tokenizer.num_codes, (1, 4, 4))
    error = relative_error(tokenizer.decode(indices), CosmosTokenizer(source, ReferenceBackend()).decode(indices))
    if not error < 0.03:
        sys.exit(f"wrong: at 64 px the result is {error:.4f} of its size away from NumPy's")


def layer_table(tokenizer, ours, theirs, codes, runs: int) -> None:
    """Best milliseconds of each op of the network, in its order."""
    program = tokenizer._decoder._prepared[1].program
    best = None
    for _ in range(runs):
        program.set_timing(True)
        ours()
        own = [seconds for _, seconds in program.timings()]
        program.set_timing(False)
        other = [float("nan")] * len(own)
        if theirs is not None:
            theirs.ops.seconds = []
            theirs(codes)
            other, theirs.ops.seconds = theirs.ops.seconds, None
        rows = np.array([own, other])
        best = rows if best is None else np.minimum(best, rows)
    print("  op                     ours ms  torch ms")
    for (op, _), own, other in zip(program.timings(), *best, strict=True):
        print(f"  {op:<20} {1e3 * own:9.2f} {1e3 * other:9.2f}{'   slower' if own > other else ''}")
    print(f"  {'sum':<20} {1e3 * best[0].sum():9.2f} {1e3 * best[1].sum():9.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 256], help="pixels of a side")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=_C.default_num_threads())
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layers", action="store_true", help="also the time of every op on both sides")
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        source = open_tokenizer(write_random_tokenizer(folder, DV8X16X16, parts=("decoder",)))
        tokenizer = CosmosTokenizer.from_pretrained(folder, dtype=options.dtype, threads=options.threads)
        check_against_numpy(tokenizer, source, rng)
        theirs = exact = None
        if torch is not None:
            torch.set_num_threads(options.threads)
            theirs = TorchDecoder(source, getattr(torch, options.dtype))
            exact = TorchDecoder(source, torch.float32)
        for size in options.sizes:
            report(tokenizer, theirs, exact, size, options, rng)


def report(tokenizer, theirs, exact, size: int, options, rng) -> None:
    side = size // tokenizer.compression
    indices = rng.integers(0, tokenizer.num_codes, (1, side, side))
    codes = tokenizer._backend.codes_of(indices, tokenizer.config.levels)
    print(f"DV8x16x16 decoder, {size} x {size}, {options.dtype}, {options.threads} threads, {_C.chosen_isa()}")
    row = {"benchmark": "pixels", "size": size, "dtype": options.dtype, "threads": options.threads}
    row |= {"isa": _C.chosen_isa(), "machine": platform.machine()}

    got = tokenizer.decode(indices)
    if theirs is not None:
        want = exact(codes)
        row["error"], row["torch_error"] = relative_error(got, want), relative_error(theirs(codes), want)
        print(f"  error to float32: ours {row['error']:.5f}, torch {row['torch_error']:.5f}")
        if not row["error"] <= max(MAX_ERROR_RATIO * row["torch_error"], 1e-5):
            sys.exit("wrong: our picture is further from float32 than torch's")

    times: dict[str, list] = {"ours": [], "torch": []}
    for _ in range(options.runs):
        times["ours"].append(measured(lambda: tokenizer.decode(indices)))
        if theirs is not None:
            times["torch"].append(measured(lambda: theirs(codes)))
    for name, rows in times.items():
        if rows:
            row |= summary(name, rows)
    if options.layers:
        layer_table(tokenizer, lambda: tokenizer.decode(indices), theirs, codes, options.runs)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
