"""How much memory one 512-px picture of a 0.5B checkpoint takes, weights, cache and image tokenizer included.

    python benchmarks/peak_memory.py [--size 0.5b] [--dtype bfloat16] [--pixels 512]

A child process loads random weights of that size with an image tokenizer, draws one guided picture and decodes it. Its
peak resident memory must stay below mapped weights + packed weights + the cache that the picture needs + 1 GiB, or the
exit code is 1. The picture must be the one that a second engine of the same process draws. The last line is JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from simplear_engine.testing.random_checkpoint import SIZES, write_random_checkpoint

GIB = 1 << 30


def draw(folder: str, dtype: str, pixels: int) -> None:
    """What the child does; its last line is JSON."""
    import numpy as np

    from simplear_engine import Engine
    from simplear_engine.forward import cache_block_bytes

    def picture(engine):
        return engine.generate("a red apple", height=pixels, width=pixels, guidance_scale=6, seed=7)[0]

    with Engine.from_pretrained(folder, dtype=dtype, max_pairs=1) as engine:
        image = picture(engine)
        assert image.pil.size == (pixels, pixels) and np.isfinite(image.pixels).all()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        model, tokens = engine.model, image.tokens.size
        query, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        in_layer = model.hidden_size * (2 * query + 2 * kv + 3 * model.intermediate_size)
        elements = model.num_layers * in_layer + model.num_codes * model.hidden_size
        cache = 2 * (tokens + 128) // 16 * cache_block_bytes(model, engine.kv_dtype)
        # The second engine comes after the peak was taken: it has weights and a cache of its own.
        with Engine.from_pretrained(folder, dtype=dtype, max_pairs=1) as second:
            assert np.array_equal(picture(second).tokens, image.tokens), "the second engine draws another picture"
        print(
            json.dumps(
                {
                    "peak": peak,
                    "packed": elements * (2 if engine.dtype == "bfloat16" else 4),
                    "cache": cache,
                    "seconds": {name: round(spent, 3) for name, spent in image.timings.items()},
                }
            )
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        draw(options.child, options.dtype, options.pixels)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write_random_checkpoint(folder, options.size, image_tokenizer=True)
        mapped = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
        child = [sys.executable, __file__, "--child", folder, "--dtype", options.dtype, "--pixels", str(options.pixels)]
        answer = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True).stdout
    measured = json.loads(answer.splitlines()[-1])
    bound = mapped + measured["packed"] + measured["cache"] + GIB
    holds = measured["peak"] <= bound
    print(f"{options.size} {options.dtype}, one guided picture of {options.pixels} x {options.pixels}")
    print(
        f"peak {measured['peak'] / GIB:.2f} GiB; mapped {mapped / GIB:.2f} + packed {measured['packed'] / GIB:.2f} + "
        f"cache {measured['cache'] / GIB:.2f} + 1 = {bound / GIB:.2f} GiB: {'within' if holds else 'EXCEEDED'}"
    )
    print(
        json.dumps(
            {
                "benchmark": "peak_memory",
                "size": options.size,
                "dtype": options.dtype,
                "pixels": options.pixels,
                "peak_gib": round(measured["peak"] / GIB, 3),
                "bound_gib": round(bound / GIB, 3),
                "seconds": measured["seconds"],
            }
        )
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
