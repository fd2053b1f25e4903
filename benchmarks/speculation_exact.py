"""Does speculation change a picture? Many cases, every window, every source, alone and in a crowd.

    python benchmarks/speculation_exact.py                  200 cases on the default model, some minutes
    python benchmarks/speculation_exact.py --cases 20 --dtypes float32,int4

A case is a prompt, a seed, a guidance scale, a size and a way to filter. It is drawn without drafts, then with every window,
sources by turns, then with "auto", alone; then all cases again at once, from several threads, in a mixture of ways while
other pictures are cancelled half way. Codes and log-probabilities must be the same bits. Prints the number of
comparisons; the first difference ends the run with exit code 1. The last line is JSON.
"""

import argparse
import json
import random
import sys
import threading

import numpy as np

from simplear_engine import Engine
from simplear_engine.sampling import DRAFT_SOURCES

WINDOWS = (1, 2, 3, 5, 8, 16, 32, 64)
PROMPTS = (
    "a red apple",
    "two dogs",
    "a cat and a dog",
    "a blue car",
    "three stars",
    "a rocket",
    "x",
    "a lion above a pizza",
)
SIZES = ((128, 128), (64, 128), (128, 48), (16, 16), (80, 112))
FILTERS = ({}, {"top_k": 4096}, {"top_k": 50, "top_p": 0.8}, {"temperature": 0.0}, {"top_k": 300, "temperature": 1.3})


class Enough(Exception):
    pass


def make_cases(count: int) -> list[dict]:
    rng = random.Random(0)
    cases = []
    for i in range(count):
        height, width = rng.choice(SIZES)
        cases.append(
            {
                "prompt": rng.choice(PROMPTS),
                "seed": rng.randrange(2**63) if i % 2 else i,
                "height": height,
                "width": width,
                "guidance_scale": rng.choice([1.0, 1.4, 3.0, 0.5]),
                **FILTERS[i % len(FILTERS)],
            }  # fmt: skip
        )
    return cases


def ways(i: int) -> list[dict]:
    """Every window with a source that changes from case to case, and "auto"."""
    fixed = [
        {"speculation": "jacobi", "draft_window": window, "draft_source": DRAFT_SOURCES[(i + j) % len(DRAFT_SOURCES)]}
        for j, window in enumerate(WINDOWS)
    ]
    return [*fixed, {"speculation": "auto", "draft_source": DRAFT_SOURCES[i % len(DRAFT_SOURCES)]}]


def compare(image, plain, what) -> None:
    same = np.array_equal(image.tokens, plain.tokens) and np.array_equal(image.log_probs, plain.log_probs)
    if not same:
        sys.exit(f"not the plain picture: {what}")


def check(dtype: str, cases: list[dict], threads: int | None) -> int:
    comparisons = 0
    with Engine.from_pretrained("default", dtype=dtype, threads=threads, max_queue=10_000) as engine:
        plain = [engine.generate(**case, speculation=None)[0] for case in cases]
        for i, case in enumerate(cases):
            for way in ways(i):
                compare(engine.generate(**case, **way)[0], plain[i], (dtype, case, way))
                comparisons += 1

        def stop(done, total):
            if done > 5:
                raise Enough

        def crowd(first: int, step: int, faults: list) -> None:
            try:
                for i in range(first, len(cases), step):
                    way = [*ways(i), {"speculation": None}][i % (len(WINDOWS) + 2)]
                    compare(engine.generate(**cases[i], **way)[0], plain[i], (dtype, cases[i], way, "in a crowd"))
                    if i % 5 == 0:
                        try:
                            engine.generate(**cases[i - 1], speculation="auto", num_images=2, on_progress=stop)
                        except Enough:
                            pass
            except BaseException as error:
                faults.append(error)

        faults: list = []
        workers = [threading.Thread(target=crowd, args=(first, 6, faults)) for first in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if faults:
            raise faults[0]
        comparisons += len(cases)
        stats = engine.stats()
        assert stats["num_free_blocks"] == stats["num_blocks"], "a block was lost"
    return comparisons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--dtypes", default="bfloat16,float32,int8,int4")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    cases, counts = make_cases(arguments.cases), {}
    for dtype in arguments.dtypes.split(","):
        counts[dtype] = check(dtype, cases, arguments.threads)
        print(f"{dtype}: {len(cases)} cases, {counts[dtype]} pictures equal the plain ones", flush=True)
    print(json.dumps({"cases": len(cases), "equal": counts}))


if __name__ == "__main__":
    main()
