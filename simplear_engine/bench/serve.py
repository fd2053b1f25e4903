"""`serve`: one engine in this process under load from threads, as a server would put it there.

Closed loop: N clients, each asks for its next picture when it has the last. Open loop: pictures are asked for at random
moments (a Poisson process), whether earlier ones are done or not; latency counts from the moment that was drawn, so a
late start is not forgiven. Every picture must be the one drawn alone for its seed.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from simplear_engine import Engine
from simplear_engine.backend import DTYPES
from simplear_engine.bench import arguments, progress, results
from simplear_engine.bench.models import model_folder
from simplear_engine.bench.timing import Times
from simplear_engine.errors import InternalError
from simplear_engine.testing.random_checkpoint import SIZES

KEY = ("load", "clients", "rate")
PROMPTS = ("a red apple", "two dogs", "a blue car")
NUM_SEEDS = 4  # different pictures of each prompt

EXAMPLES = """\
examples:
  python -m simplear_engine.bench serve
      the embedded model; 1 to 16 clients, then Poisson arrivals at 0.5, 0.8 and 0.95 of the best rate found
  python -m simplear_engine.bench serve --clients 4,32 --max-pairs 16 --pictures 400
  python -m simplear_engine.bench serve --rate 20,60 --no-pixels
"""


def add_arguments(parser) -> None:
    parser.add_argument("--model", help="a checkpoint's folder, or default (default: default)")
    parser.add_argument("--size", choices=SIZES, help="random weights of this size, in place of --model; no pixels")
    parser.add_argument("--dtype", default="auto", help=f"auto, {', '.join(DTYPES)} (default: auto)")
    parser.add_argument("--clients", default="1,2,4,8,16", help="threads of the closed loop (default: 1,2,4,8,16)")
    parser.add_argument("--rate", help="arrivals a second in the open loop (default: 0.5, 0.8, 0.95 of the best)")
    parser.add_argument("--pictures", default="64", help="pictures of each load (default: 64)")
    parser.add_argument("--max-pairs", default="8", help="pictures in flight at once (default: 8)")
    parser.add_argument("--no-pixels", action="store_true", help="codes only")


class Load:
    """Draws pictures from a fixed set and keeps what each cost; a wrong one is remembered and raised by `row`."""

    def __init__(self, engine: Engine, with_pixels: bool):
        self._engine, self._with_pixels = engine, with_pixels
        self._wanted = [(prompt, seed) for seed in range(NUM_SEEDS) for prompt in PROMPTS]
        self._alone = [self._draw(index) for index in range(len(self._wanted))]

    def _draw(self, index: int):
        prompt, seed = self._wanted[index % len(self._wanted)]
        (image,) = self._engine.generate(prompt, seed=seed)
        if self._with_pixels:
            _ = image.pixels
        return image

    def closed(self, clients: int, pictures: int) -> dict:
        """`clients` threads take the next picture from the same list until it is empty."""
        waiting, lock, done = iter(range(pictures)), threading.Lock(), []

        def client() -> None:
            while True:
                with lock:
                    index = next(waiting, None)
                if index is None:
                    return
                asked = time.perf_counter()
                done.append((index, self._draw(index), time.perf_counter() - asked))

        start = time.perf_counter()
        _run_in_threads([client] * clients)
        return self._row("closed", clients, None, done, time.perf_counter() - start)

    def open(self, rate: float, pictures: int) -> dict:
        """Arrivals at random moments of a fixed seed, `rate` a second on average."""
        gaps = np.random.default_rng(0).exponential(1 / rate, pictures)
        moments, done = np.cumsum(gaps), []
        start = time.perf_counter()

        def one(index: int) -> None:
            image = self._draw(index)
            done.append((index, image, time.perf_counter() - start - moments[index]))

        with ThreadPoolExecutor(max_workers=pictures) as callers:
            futures = []
            for index, moment in enumerate(moments):
                time.sleep(max(0.0, start + moment - time.perf_counter()))
                futures.append(callers.submit(one, index))
            for future in futures:
                future.result()
        return self._row("poisson", None, rate, done, time.perf_counter() - start)

    def _row(self, load: str, clients: int | None, rate: float | None, done: list, seconds: float) -> dict:
        for index, image, _ in done:
            alone = self._alone[index % len(self._wanted)]
            same = np.array_equal(image.tokens, alone.tokens)
            if not same or (self._with_pixels and not np.array_equal(image.pixels, alone.pixels)):
                raise InternalError(f"serve: seed {image.seed} of {image.prompt!r} is another picture than alone")
        latency = Times.of(spent for _, _, spent in done)
        queue = Times.of(image.timings["queue"] for _, image, _ in done)
        return {
            "load": load, "clients": clients, "rate": rate, "pictures": len(done),
            "s_per_image": seconds / len(done), "images_per_s": len(done) / seconds,
            "latency_s": {"p50": latency.median, "p90": latency.p90, "p99": latency.percentile(99)},
            "queue_s": {"p50": queue.median, "p90": queue.p90, "p99": queue.percentile(99)},
        }  # fmt: skip


def _run_in_threads(functions) -> None:
    """All at once; the first exception of any comes out here."""
    with ThreadPoolExecutor(max_workers=len(functions)) as threads:
        for future in [threads.submit(function) for function in functions]:
            future.result()


def run(options) -> dict:
    clients = arguments.integers("--clients", options.clients, 1, 256)
    (pictures,) = arguments.integers("--pictures", options.pictures, 1, 100_000, one=True)
    (max_pairs,) = arguments.integers("--max-pairs", options.max_pairs, 1, 4096, one=True)
    dtype = arguments.one_of_each("--dtype", options.dtype, ("auto", *DTYPES))[0]
    rates = [arguments.positive_number("--rate", part) for part in options.rate.split(",")] if options.rate else None
    with model_folder(options.size, options.model, default="default") as (folder, name):
        with Engine.from_pretrained(folder, dtype=dtype, threads=options.threads, max_pairs=max_pairs) as engine:
            with_pixels = engine.has_image_tokenizer and not options.no_pixels
            rows = measure(Load(engine, with_pixels), clients, rates, pictures)
            return results.document(
                "serve", engine._backend, rows, KEY, "s_per_image", model=name, dtype=engine.dtype, pixels=with_pixels,
                max_pairs=max_pairs,
            )  # fmt: skip


def measure(load: Load, clients: list[int], rates: list[float] | None, pictures: int) -> list[dict]:
    with progress.bar(total=len(clients) + len(rates or (1, 2, 3)), desc="loads") as bar:
        rows = []
        for count in clients:
            rows.append(load.closed(count, pictures))
            bar.update()
        best = max(row["images_per_s"] for row in rows)
        for rate in rates or [round(share * best, 3) for share in (0.5, 0.8, 0.95)]:
            rows.append(load.open(rate, pictures))
            bar.update()
    return rows


def lines(document: dict) -> list[str]:
    told = [
        f"{document['model']} {document['dtype']}, {'with' if document['pixels'] else 'without'} pixels, "
        f"{document['max_pairs']} pictures in flight at most; every picture is the one drawn alone",
        f"{'':<22} {'images/s':>9} {'latency p50':>12} {'p90':>8} {'p99':>8} {'queue p50':>10} {'p90':>8} {'p99':>8} s",
    ]
    for row in document["rows"]:
        name = f"closed, {row['clients']} clients" if row["rate"] is None else f"Poisson, {row['rate']:g} a second"
        latency, queue = row["latency_s"], row["queue_s"]
        told.append(
            f"{name:<22} {row['images_per_s']:>9.2f} {latency['p50']:>12.4f} {latency['p90']:>8.4f} "
            f"{latency['p99']:>8.4f} {queue['p50']:>10.4f} {queue['p90']:>8.4f} {queue['p99']:>8.4f}"
        )
    return told
