"""What limits speculation on a model, as one picture.

    python benchmarks/speculation_plots.py --out docs/images/speculation.png
    python benchmarks/speculation_plots.py --images 200 --threads 1 --out docs/images/speculation.png

Left: how much the distribution of a code changes (total variation) when one code is replaced by the runner-up, by how
far before it that code stands; guided and filtered as the checkpoint says. A draft behind a wrong one is right again
where this is small. Middle: how often a draft is kept, by its place in a window of 64, with and without what earlier
pictures taught. Right: codes that a step yields, by where in the picture it begins. Drawing needs matplotlib. The last
line is JSON.
"""

import argparse
import json

import numpy as np
from speculation import prompts

from simplear_engine import Engine

PERTURBED_PER_IMAGE = 4
WINDOW = 64


def distributions(engine: Engine, prompt: str, tokens: np.ndarray) -> np.ndarray:
    """float64 [h*w, codes]: what each code is drawn from, given those before it."""
    text, defaults = engine._text, engine.defaults
    cond = engine.score_from_ids(text.encode_prompt(prompt, defaults), tokens).astype(np.float64)
    uncond = engine.score_from_ids(text.encode_negative(defaults.negative_prompt, defaults), tokens)
    z = uncond + defaults.guidance_scale * (cond - uncond)
    if defaults.top_k is not None:
        z[z < np.sort(z, axis=1)[:, -defaults.top_k, None]] = -np.inf
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def variation_by_offset(engine: Engine, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    total = number = None
    for i, prompt in enumerate(prompts(count)):
        (image,) = engine.generate(prompt, seed=i)
        before = distributions(engine, prompt, image.tokens)
        if total is None:
            total, number = np.zeros(len(before)), np.zeros(len(before))
        for at in rng.choice(len(before) - 1, PERTURBED_PER_IMAGE, replace=False):
            tokens = image.tokens.reshape(-1).copy()
            others = before[at].copy()
            others[tokens[at]] = -1
            tokens[at] = others.argmax()
            after = distributions(engine, prompt, tokens)
            change = 0.5 * np.abs(after - before).sum(axis=1)[at + 1 :]
            total[1 : 1 + len(change)] += change
            number[1 : 1 + len(change)] += 1
    return total[1:] / np.maximum(number[1:], 1)


def windows(engine: Engine, count: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """(share of drafts kept by place, mean yield of a step by the cell where it begins)."""
    verified, kept = np.zeros(WINDOW - 1), np.zeros(WINDOW - 1)
    yields = steps = None
    for i, prompt in enumerate(prompts(count)):
        (image,) = engine.generate(prompt, seed=i, speculation="jacobi", draft_window=WINDOW, draft_source=source)
        if yields is None:
            yields, steps = np.zeros(image.tokens.size), np.zeros(image.tokens.size)
        begins = np.cumsum(image.accepted_lens) - image.accepted_lens
        np.add.at(yields, begins, image.accepted_lens)
        np.add.at(steps, begins, 1)
        for total, counts in zip((verified, kept), image.draft_counts, strict=True):
            total[: len(counts)] += counts
    return kept / np.maximum(verified, 1), (yields / np.maximum(steps, 1)).reshape(image.tokens.shape)


def plot(path: str, variation: np.ndarray, places: dict[str, np.ndarray], grid: np.ndarray) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8))
    left.plot(np.arange(1, len(variation) + 1), variation, marker=".")
    left.set(xlabel="codes after the replaced one", ylabel="total variation", ylim=0)
    for name, shares in places.items():
        middle.plot(np.arange(1, len(shares) + 1), shares, label=name)
    middle.set(xlabel="place in the window", ylabel="drafts kept", yscale="log")
    middle.legend()
    shown = right.imshow(grid, cmap="viridis", vmin=1)
    right.set(xlabel="column", ylabel="row")
    figure.colorbar(shown, ax=right, label="codes a step")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", metavar="FILE.png", help="where to draw; without it only numbers are printed")
    arguments = parser.parse_args()
    with Engine.from_pretrained(arguments.model, threads=arguments.threads) as engine:
        engine._core.learns_drafts = False
        engine._pixels = None
        variation = variation_by_offset(engine, arguments.images)
        learnt, grid = windows(engine, arguments.images, "context")
        left, _ = windows(engine, arguments.images, "left")
    if arguments.out:
        plot(arguments.out, variation, {"earlier pictures": learnt, "code to the left": left}, grid)
    shown = [1, 2, 3, 4, 6, 8, 9, 12, 16, 24, 32]
    by_offset = {offset: round(float(variation[offset - 1]), 4) for offset in shown if offset <= len(variation)}
    print("total variation by offset:", by_offset)
    print(json.dumps({"variation": [round(float(v), 4) for v in variation], "grid": np.round(grid, 2).tolist()}))


if __name__ == "__main__":
    main()
