#!/usr/bin/env python3
"""The paper's claims in small: does fine-tuning draw better than pretraining, and reinforcement better than fine-tuning?

    python benchmarks/training/stages.py --out runs/stages [--seeds 0,1,2] [--at-once 2]

Runs the recipe of 27 concepts once for its data and its reward, then trains every seed through all three stages:
other weights to begin with, other batches, other captions, other rollouts. EmojiEval judges every model with the same
prompts and noise. Some hours on two cores; runs that were cut off go on where they were.

Pretraining and fine-tuning are compared as their models draw, guided and with top-k; fine-tuning and reinforcement as
the latter draws, plainly, because what sharpens from outside leaves it little to do.

Prints a row for each comparison: means over seeds and, for the gain, the 95 % interval of Student's t over the seeds' own
gains, for every task; then the reward of the first and the last fifth of every seed's reinforcement.
Writes OUT/stages.json and OUT/stages.png, which needs matplotlib. The last line is the same JSON.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from simplear_engine.bench.plots import load_pyplot
from simplear_engine.errors import SimplearError
from simplear_train.recipe import first_and_last, prepare

WORLD = "small"
PICTURES = 16  # of a prompt: this world holds out few facts, and with four the seeds' gains drown in chance
# How EmojiEval draws: as the model's folder says, or every code from its whole distribution, as reinforcement does.
DRAWN = {"guided": (), "plain": ("--guidance-scale", "1", "--top-k", "4096")}
STAGES = ("pretrain", "sft", "grpo")
COMPARED = (("pretrain", "sft", "guided"), ("sft", "grpo", "plain"))
# Half the width of a 95 % interval of a mean, in standard errors, for 2, 3, 4, 5 values (Student's t).
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def call(folder: Path, threads: int, name: str, module: str, *arguments: str) -> None:
    """Runs a module in `folder`, its output in NAME.log there."""
    command = [sys.executable, "-m", f"simplear_train.{module}", *arguments]
    log = folder / f"{name}.log"
    with log.open("a") as file:
        ended = subprocess.run(
            command, cwd=folder, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
        )
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} failed; its log is {log}")


def scores(run: str, drawn: str, folder: Path, threads: int) -> dict[str, float]:
    model, out = f"{run}/model", f"emojieval-{run}-{drawn}"
    path = folder / out / "scores.json"
    if not path.exists():
        settings = ["--world", WORLD, "--pictures", str(PICTURES), *DRAWN[drawn]]
        call(folder, threads, out, "emojieval", *settings, "--model", model, "--out", out)
    result = json.loads(path.read_text())
    return {
        **{task: entry["score"] for task, entry in result["tasks"].items()}, "overall": result["overall"]["score"]
    }  # fmt: skip


def train_seed(seed: int, folder: Path, threads: int) -> dict[str, dict[str, float]]:
    """Scores of the seed's models, by "STAGE, DRAWN"."""
    found, start = {}, None
    for stage in STAGES:
        run = f"{stage}-{seed}"
        settings = [f"loop.seed={seed}"]
        if start:
            settings.append(f"start={start}")
        if stage == "grpo":
            settings.append(f"rollout.threads={threads}")
        changes = [f"--set={setting}" for setting in settings]
        call(folder, threads, run, stage, "--config", f"{WORLD}-{stage}", *changes, "--resume", "--out", run)
        start = f"{run}/model"
        for drawn in [drawn for *both, drawn in COMPARED if stage in both]:
            found[f"{stage}, {drawn}"] = scores(run, drawn, folder, threads)
    return found


def gain(before: list[float], after: list[float]) -> dict[str, float]:
    """Mean of the seeds' gains and half the width of its interval."""
    differences = np.subtract(after, before)
    count = len(differences)
    error = float(differences.std(ddof=1)) / count**0.5 if count > 1 else float("nan")
    return {"mean": float(differences.mean()), "half_width": STUDENT.get(count, float("nan")) * error}


def table(by_seed: list[dict[str, dict[str, float]]]) -> tuple[str, dict]:
    """(text, gains): two lines and their difference for each comparison, and what stands in the differences."""
    tasks = list(by_seed[0]["pretrain, guided"])
    lines, gains = [f"{'':18}" + "".join(f"{task:>18}" for task in tasks)], {}
    for *both, drawn in COMPARED:
        rows = [[[seed[f"{stage}, {drawn}"][task] for seed in by_seed] for task in tasks] for stage in both]
        for stage, row in zip(both, rows):
            lines.append(f"{f'{stage}, {drawn}':18}" + "".join(f"{np.mean(values):18.3f}" for values in row))
        gained = {task: gain(before, after) for task, before, after in zip(tasks, *rows)}
        cells = [f"{g['mean']:+.3f} ± {g['half_width']:.3f}" for g in gained.values()]
        lines.append(f"{'  gain':18}" + "".join(f"{cell:>18}" for cell in cells))
        gains[f"{both[1]} over {both[0]}"] = gained
    return "\n".join(lines), gains


def plot(plt, seeds: list[int], by_seed: list, folder: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    places = [f"{stage}, {drawn}" for *both, drawn in COMPARED for stage in both]
    for number, (seed, found) in enumerate(zip(seeds, by_seed)):
        for first in range(0, len(places), 2):
            pair = places[first : first + 2]
            name = None if first else f"seed {seed}"
            left.plot(pair, [found[place]["overall"] for place in pair], "o-", color=f"C{number}", label=name)
        rows = map(json.loads, (folder / f"grpo-{seed}" / "log.jsonl").read_text().splitlines())
        reward = np.array([row["reward"] for row in rows if row.get("reward") is not None])
        width = min(10, len(reward))
        smooth = np.convolve(reward, np.ones(width) / width, "valid")
        right.plot(np.arange(len(smooth)) + width, smooth, label=f"seed {seed}")
    left.set(ylabel="EmojiEval, overall", ylim=(0, None), title="after each stage")
    right.set(xlabel="step", ylabel="reward, mean of ten steps", title="reinforcement")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(folder / "stages.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--reward",
        type=Path,
        help="folder of a trained emoji_clip (it may know more concepts) instead of one of its own",
    )
    parser.add_argument("--at-once", type=int, default=2, help="seeds that run side by side")
    parser.add_argument("--threads", type=int, default=1, help="of each of them")
    args = parser.parse_args()
    try:
        plt = load_pyplot()
    except SimplearError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    seeds = [int(seed) for seed in args.seeds.split(",")]
    out = args.out.resolve()
    prepare(WORLD, out, args.reward)
    with ThreadPoolExecutor(args.at_once) as pool:
        by_seed = list(pool.map(lambda seed: train_seed(seed, out, args.threads), seeds))
    text, gains = table(by_seed)
    print(text)
    rewards = [first_and_last(out / f"grpo-{seed}" / "log.jsonl", "reward") for seed in seeds]
    for seed, (first, last) in zip(seeds, rewards):
        print(f"seed {seed}: reward {first:.3f} -> {last:.3f}")
    result = {"seeds": seeds, "scores": by_seed, "gains": gains, "rewards": rewards}
    (out / "stages.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    plot(plt, seeds, by_seed, out)


if __name__ == "__main__":
    main()
