"""Plot the losses of a run: tokenizer, decoder refinement and language model side by side.

    python -m simplear_train.plot_training --tokenizer runs/tokenizer/log.jsonl --decoder runs/decoder/log.jsonl \\
        --model runs/model/log.jsonl --out docs/images/default_model_training.png
"""

import argparse
import json
from pathlib import Path


def read_series(path: Path, key: str) -> tuple[list[int], list[float]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    points = [(row["step"], row[key]) for row in rows if "step" in row and key in row]
    return [step for step, _ in points], [value for _, value in points]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--decoder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    base = 0
    for name, path in (("tokenizer", args.tokenizer), ("decoder alone", args.decoder)):
        if path is not None:
            steps, psnr = read_series(path, "psnr")
            left.plot([base + step for step in steps], psnr, marker=".", label=name)
            base += steps[-1]
    left.set(title="reconstruction of unseen scenes", xlabel="step", ylabel="PSNR, dB")
    left.legend()
    right.plot(*read_series(args.model, "visual_loss"), linewidth=0.6, color="0.7", label="training batch")
    right.plot(*read_series(args.model, "validation"), marker=".", label="unseen scenes")
    right.plot(*read_series(args.model, "validation_unconditional"), marker=".", label="unseen scenes, no caption")
    right.set(title="language model", xlabel="step", ylabel="nats per visual token", ylim=(0, None))
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=90)
    print(args.out)


if __name__ == "__main__":
    main()
