"""Does a busy Python thread in the host process slow a forward step? (contract C4)

    python benchmarks/step_under_python_load.py [--model default] [--images 4] [--rounds 5]

Draws the same images alternately with and without a spinning Python thread and prints the median milliseconds of a
step for both, and their ratio. The images of both must be equal, or no number is printed. The engine runs on one core
less than the machine has, so that the spinning thread has a core of its own: what is measured is the GIL, not a
shortage of cores. The last line is JSON.
"""

import argparse
import json
import statistics
import threading
import time

import numpy as np

from simplear_engine import Engine, _C


def spin(stop: threading.Event) -> None:
    count = 0
    while not stop.is_set():
        count += 1


def draw(engine: Engine, num_images: int) -> tuple[float, list]:
    """(milliseconds a step, images)."""
    before = engine.stats()
    images = engine.generate("a red apple", num_images=num_images, seed=1, speculation=None)
    after = engine.stats()
    steps = after["num_steps"] - before["num_steps"]
    return (after["busy_seconds"] - before["busy_seconds"]) / steps * 1e3, images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    threads = max(1, _C.default_num_threads() - 1)
    quiet, busy = [], []
    with Engine.from_pretrained(options.model, threads=threads) as engine:
        _, reference = draw(engine, options.images)
        for _ in range(options.rounds):
            for times, is_busy in ((quiet, False), (busy, True)):
                stop = threading.Event()
                spinner = threading.Thread(target=spin, args=(stop,), daemon=True)
                if is_busy:
                    spinner.start()
                    time.sleep(0.05)
                milliseconds, images = draw(engine, options.images)
                stop.set()
                for image, expected in zip(images, reference, strict=True):
                    np.testing.assert_array_equal(image.tokens, expected.tokens)
                times.append(milliseconds)
    ratio = statistics.median(b / q for q, b in zip(quiet, busy, strict=True))
    print(
        f"step alone {statistics.median(quiet):.3f} ms, beside a spinning Python thread {statistics.median(busy):.3f} ms"
    )
    print(json.dumps({"threads": threads, "quiet_ms": quiet, "busy_ms": busy, "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
