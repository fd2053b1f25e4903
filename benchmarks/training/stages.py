#!/usr/bin/env python3
"""The paper's claim in small: does fine-tuning draw better than pretraining, and reinforcement better than fine-tuning?

    python benchmarks/training/stages.py --runs runs/default --out runs/stages [--seeds 0,1,2] [--at-once 2]

`runs` is the output folder of the default recipe, of which the pretrained model, tokens, prompts and reward are used. Each
seed fine-tunes the pretrained model and reinforces what comes out: other batches, other captions, other rollouts. EmojiEval
judges every model with the same prompts and noise. Runs that were cut off go on where they were.

Prints a row for each stage: mean over seeds and, for the gain over the stage before, the 95 % interval of Student's t over
the seeds' own gains, for every task. The last line is JSON; OUT/stages.json is the same.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

# Half the width of a 95 % interval of a mean, in standard errors, for 2, 3, 4, 5 values (Student's t).
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def call(module: str, *arguments: str, folder: Path, threads: int) -> None:
    command = [sys.executable, "-m", f"simplear_train.{module}", *arguments]
    log = folder / f"{module}-{Path(arguments[-1]).name}.log"
    with log.open("a") as file:
        ended = subprocess.run(
            command, cwd=folder, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
        )
    if ended.returncode:
        sys.exit(f"{' '.join(command)} failed; its log is {log}")


def scores(model: Path, out: Path, threads: int) -> dict[str, float]:
    if not (out / "scores.json").exists():
        call("emojieval", "--model", str(model), "--out", str(out), folder=out.parent, threads=threads)
    result = json.loads((out / "scores.json").read_text())
    return {
        **{task: entry["score"] for task, entry in result["tasks"].items()}, "overall": result["overall"]["score"]
    }  # fmt: skip


def train_seed(seed: int, runs: Path, out: Path, threads: int) -> list[dict[str, float]]:
    """Scores of the fine-tuned and of the reinforced model."""
    found = []
    start = runs / "pretrain" / "model"
    for stage in ("sft", "grpo"):
        run = out / f"{stage}-{seed}"
        settings = [f"start={start}", f"loop.seed={seed}"]
        if stage == "grpo":
            settings.append(f"rollout.threads={threads}")
        arguments = [f"--set={setting}" for setting in settings]
        call(
            stage,
            "--config",
            f"default-{stage}",
            *arguments,
            "--resume",
            "--out",
            str(run),
            folder=runs,
            threads=threads,
        )
        start = run / "model"
        found.append(scores(start, out / f"emojieval-{stage}-{seed}", threads))
    return found


def gain(before: list[float], after: list[float]) -> dict[str, float]:
    """Mean of the seeds' gains and half the width of its interval."""
    differences = np.subtract(after, before)
    count = len(differences)
    error = float(differences.std(ddof=1)) / count**0.5 if count > 1 else float("nan")
    return {"mean": float(differences.mean()), "half_width": STUDENT.get(count, float("nan")) * error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="output folder of simplear_train.recipe default")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--at-once", type=int, default=2, help="seeds that run side by side")
    parser.add_argument("--threads", type=int, default=1, help="of each of them")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    runs, out = args.runs.resolve(), args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    pretrained = scores(runs / "pretrain" / "model", out / "emojieval-pretrain", args.threads)
    with ThreadPoolExecutor(args.at_once) as pool:
        by_seed = list(pool.map(lambda seed: train_seed(seed, runs, out, args.threads), seeds))
    stages = {
        "pretrain": [pretrained] * len(seeds), "sft": [s[0] for s in by_seed], "grpo": [s[1] for s in by_seed],
    }  # fmt: skip
    result = {"seeds": seeds, "scores": stages, "gains": {}}
    tasks, before = list(pretrained), None
    print(f"{'':10}" + "".join(f"{task:>24}" for task in tasks))
    for stage, found in stages.items():
        cells = []
        for task in tasks:
            values = [scored[task] for scored in found]
            cell = f"{np.mean(values):.3f}"
            if before is not None:
                gained = gain([scored[task] for scored in before], values)
                result["gains"].setdefault(stage, {})[task] = gained
                cell += f" ({gained['mean']:+.3f} ± {gained['half_width']:.3f})"
            cells.append(f"{cell:>24}")
        print(f"{stage:10}" + "".join(cells))
        before = found
    (out / "stages.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
