"""Plot the logs of training runs, a panel for each: the picture tokenizer, and every language stage.

In runs/:

    python -m simplear_train.plot_training --tokenizer tokenizer-run/log.jsonl --decoder decoder-run/log.jsonl \\
        --stage pretraining=pretrain/log.jsonl --stage fine-tuning=sft/log.jsonl \\
        --stage reinforcement=grpo/log.jsonl --out training.png

A stage that logs a reward is drawn with it, the others with their loss. Every argument may be left out.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from simplear_engine.bench.plots import load_pyplot
from simplear_engine.errors import SimplearError


def read_series(path: Path, key: str) -> tuple[list[int], list[float]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    points = [(row["step"], row[key]) for row in rows if "step" in row and row.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def smooth(values: list[float], width: int) -> np.ndarray:
    """The mean of up to `width` values on either side of each."""
    return np.array([np.mean(values[max(0, i - width) : i + width + 1]) for i in range(len(values))])


def draw_reconstruction(axes, tokenizer: Path | None, decoder: Path | None) -> None:
    base = 0
    for name, path in (("tokenizer", tokenizer), ("decoder alone", decoder)):
        if path is not None:
            steps, psnr = read_series(path, "psnr")
            axes.plot([base + step for step in steps], psnr, marker=".", label=name)
            base += steps[-1]
    axes.set(title="reconstruction of unseen scenes", ylabel="PSNR, dB")


def draw_loss(axes, log: Path) -> None:
    axes.plot(*read_series(log, "visual_loss"), linewidth=0.6, color="0.7", label="training batch")
    axes.plot(*read_series(log, "validation"), marker=".", label="unseen scenes")
    axes.plot(*read_series(log, "validation_unconditional"), marker=".", label="unseen scenes, no caption")
    axes.set(ylabel="nats per visual token", ylim=(0, None))


def draw_reward(axes, log: Path) -> None:
    steps, reward = read_series(log, "reward")
    axes.plot(steps, reward, linewidth=0.6, color="0.7", label="a step")
    axes.plot(steps, smooth(reward, max(1, len(reward) // 20)), label="mean around it")
    axes.set(ylabel="reward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--decoder", type=Path)
    parser.add_argument("--stage", action="append", default=[], metavar="TITLE=LOG", help="may be given several times")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    stages = [entry.partition("=")[::2] for entry in args.stage]
    if any(not path for _, path in stages):
        parser.error("--stage: expected TITLE=LOG")
    reconstructs = bool(args.tokenizer or args.decoder)
    if not (reconstructs or stages):
        parser.error("expected --tokenizer, --decoder or --stage")

    try:
        plt = load_pyplot()
    except SimplearError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    count = reconstructs + len(stages)
    figure, panels = plt.subplots(1, count, figsize=(5 * count, 3.6), layout="constrained", squeeze=False)
    panels = list(panels[0])
    if reconstructs:
        draw_reconstruction(panels[0], args.tokenizer, args.decoder)
    for axes, (title, path) in zip(panels[reconstructs:], stages, strict=True):
        draw = draw_reward if read_series(Path(path), "reward")[0] else draw_loss
        draw(axes, Path(path))
        axes.set(title=title)
    for axes in panels:
        axes.set(xlabel="step")
        axes.legend()
        axes.grid(alpha=0.3)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=90)
    print(args.out)


if __name__ == "__main__":
    main()
