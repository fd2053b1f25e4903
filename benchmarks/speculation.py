"""How many codes does a step yield with drafts, and what does a picture cost then?

    python benchmarks/speculation.py [--model default] [--windows 1,2,4,8,16,32,64] [--seeds 2] [--threads N]

Draws the same pictures with every draft window, interleaved, and prints for each window the codes a step yields and the
milliseconds of engine time a picture takes (medians over the seeds' rounds). Every picture must equal the one drawn
without drafts, or nothing is printed. The last line is JSON.
"""

import argparse
import json
import statistics

import numpy as np

from simplear_engine import Engine

PROMPTS = [
    "a red apple",
    "a cat",
    "a blue car",
    "two dogs",
    "a sunflower",
    "a rocket",
    "a cat and a dog",
    "three stars",
]


def draw(engine: Engine, window: int, seed: int, options: dict) -> tuple[list, float]:
    """(one picture of each prompt, seconds of engine time they took)."""
    speculation = {"speculation": "jacobi", "draft_window": window} if window > 1 else {}
    before = engine.stats()["busy_seconds"]
    images = [engine.generate(prompt, seed=seed, **options, **speculation)[0] for prompt in PROMPTS]
    return images, engine.stats()["busy_seconds"] - before


def measure(engine: Engine, windows: list[int], seeds: int, options: dict) -> list[dict]:
    codes = {window: 0 for window in windows}
    steps = {window: 0 for window in windows}
    milliseconds: dict[int, list[float]] = {window: [] for window in windows}
    for seed in range(seeds):
        plain, _ = draw(engine, 1, seed, options)
        for window in windows:
            images, seconds = draw(engine, window, seed, options)
            for image, expected in zip(images, plain, strict=True):
                np.testing.assert_array_equal(image.tokens, expected.tokens)
                codes[window] += image.tokens.size
                steps[window] += len(image.accepted_lens)
            milliseconds[window].append(seconds / len(images) * 1e3)
    return [
        {
            "window": window,
            "codes_per_step": round(codes[window] / steps[window], 3),
            "ms_per_image": round(statistics.median(milliseconds[window]), 2),
        }
        for window in windows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--windows", default="1,2,4,8,16,32,64")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    windows = [int(window) for window in arguments.windows.split(",")]
    results = {}
    with Engine.from_pretrained(arguments.model, threads=arguments.threads) as engine:
        every_code = engine.model.num_codes
        settings = {
            "the checkpoint's settings": {},
            "every code allowed": {"top_k": every_code},
            "every code, no guidance": {"top_k": every_code, "guidance_scale": 1},
        }
        for name, options in settings.items():
            results[name] = measure(engine, windows, arguments.seeds, options)
            print(name)
            for row in results[name]:
                print(
                    f"  window {row['window']:>2}  {row['codes_per_step']:.2f} codes a step  {row['ms_per_image']:.1f} ms"
                )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
