"""Pixels beside tokens: what decoding pictures costs the pictures that are still being drawn, and images a second.

    python benchmarks/overlap.py
    python benchmarks/overlap.py --model FOLDER --size 256 --pairs 8 2

First one picture is drawn alone and again beside a thread that turns codes into pixels without pause: milliseconds a
step, the longest wait for one code, and pictures decoded a second. Then eight requests at once, pixels included, with so
many in flight that all end in the same step, and with so few that pixels of some and codes of others meet. Before
anything is timed, a picture drawn beside the decoding must be the picture drawn alone.
"""

import argparse
import json
import statistics
import sys
import threading
import time

import numpy as np

from simplear_engine import Engine

PROMPT, NEGATIVE = list(range(5, 37)), list(range(5, 15))
NUM_REQUESTS = 8


class Decoding:
    """Decodes the same picture again and again on a thread of its own while the block runs."""

    def __init__(self, engine, codes):
        self._engine, self._codes, self._stop = engine, codes, threading.Event()
        self._thread = threading.Thread(target=self._loop)
        self.seconds = []

    def _loop(self):
        while not self._stop.is_set():
            start = time.perf_counter()
            self._engine._pixels.start(self._codes, {}).result()
            self.seconds.append(time.perf_counter() - start)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._stop.set()
        self._thread.join()


def draw(engine, size: int, seed: int = 1):
    """(codes, ms a step, longest ms without a new code) of one picture."""
    sampling = engine._check(
        height=size, width=size, num_images=1, guidance_scale=None, temperature=1.0, top_k=None, top_p=1.0, seed=seed,
        speculation=None, draft_window=None,
    )  # fmt: skip
    from simplear_engine.engine import _Prompt

    request = engine._request(_Prompt(PROMPT, NEGATIVE), seed, sampling)
    engine._core.submit(request)
    # The first code comes after the prompt, which is no step like the others.
    while request.num_done == 0 and not request.wait(0.0002):
        pass
    first = last = time.perf_counter()
    seen, longest = request.num_done, 0.0
    begun = seen
    while not request.wait(0.0002):
        if request.num_done != seen:
            now = time.perf_counter()
            longest, last, seen = max(longest, now - last), now, request.num_done
    request.raise_if_failed()
    step = (time.perf_counter() - first) / (request.num_image_tokens - begun)
    return request.codes.reshape(sampling.grid), 1e3 * step, 1e3 * longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="default", help="default, or a checkpoint folder with an image tokenizer")
    parser.add_argument("--size", type=int, help="pixels of a side (default: the model's own)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--pairs", type=int, nargs="+", default=[8, 2], help="pictures in flight")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    row = {"benchmark": "overlap", "model": options.model.rstrip("/").rpartition("/")[2]}
    with Engine.from_pretrained(options.model, threads=options.threads) as engine:
        size = row["size"] = options.size or engine.defaults.height
        row["threads"] = engine._backend.pool.size
        print(f"{engine!r}, {size} x {size}, {row['threads']} threads")
        row |= step_report(engine, size, options.runs)
    for pairs in options.pairs:
        with Engine.from_pretrained(options.model, threads=options.threads, max_pairs=pairs) as engine:
            row |= throughput_report(engine, size, pairs, options.runs)
    print(json.dumps(row))


def step_report(engine, size: int, runs: int) -> dict:
    codes = draw(engine, size)[0]
    engine._pixels.start(codes, {}).result()
    alone, beside, decodes = [], [], []
    for _ in range(runs):
        alone.append(draw(engine, size)[1:])
        with Decoding(engine, codes) as decoding:
            again, *times = draw(engine, size)
            beside.append(times)
        decodes += decoding.seconds
        if not np.array_equal(again, codes):
            sys.exit("wrong: the picture changed because pixels of another one were decoded beside it")
    start, cpu = time.perf_counter(), time.process_time()
    engine._pixels.start(codes, {}).result()
    row = {
        "decode_alone_ms": 1e3 * (time.perf_counter() - start),
        "decode_alone_cpu_ms": 1e3 * (time.process_time() - cpu),
        "decode_beside_ms": 1e3 * statistics.median(decodes),
    }
    for name, times in (("alone", alone), ("beside", beside)):
        row[f"step_{name}_ms"] = statistics.median(step for step, _ in times)
        row[f"step_{name}_min_ms"] = min(step for step, _ in times)
        row[f"longest_{name}_ms"] = statistics.median(longest for _, longest in times)
        print(f"  step {name:<7} {row[f'step_{name}_ms']:7.2f} ms (best {row[f'step_{name}_min_ms']:.2f}), "
              f"longest wait {row[f'longest_{name}_ms']:.1f} ms")  # fmt: skip
    print(f"  decode alone {row['decode_alone_ms']:.1f} ms ({row['decode_alone_cpu_ms']:.1f} CPU-ms), "
          f"beside steps {row['decode_beside_ms']:.1f} ms")  # fmt: skip
    return {key: round(value, 3) for key, value in row.items()}


def throughput_report(engine, size: int, pairs: int, runs: int) -> dict:
    negative = None if engine.defaults.guidance_scale == 1 else NEGATIVE

    def once():
        images = engine.generate_from_ids(
            PROMPT, negative, height=size, width=size, num_images=NUM_REQUESTS, temperature=1.0, seed=1
        )
        return [image.pixels for image in images]

    once()
    walls, cpus = [], []
    for _ in range(runs):
        start, cpu = time.perf_counter(), time.process_time()
        once()
        walls.append(time.perf_counter() - start)
        cpus.append(time.process_time() - cpu)
    rate, best = NUM_REQUESTS / statistics.median(walls), NUM_REQUESTS / min(walls)
    print(f"  {NUM_REQUESTS} requests, {pairs} in flight: {rate:.2f} images/s (best {best:.2f}), "
          f"{min(cpus) / NUM_REQUESTS:.3f} CPU-s an image")  # fmt: skip
    return {
        f"images_per_s_{pairs}": round(rate, 3),
        f"images_per_s_{pairs}_best": round(best, 3),
        f"cpu_s_per_image_{pairs}": round(min(cpus) / NUM_REQUESTS, 4),
    }


if __name__ == "__main__":
    main()
