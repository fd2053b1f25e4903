"""Does training run on this machine, and how fast? With nothing but the package: no art, no network.

    python benchmarks/training/self_taught.py --out runs/self-taught                    the device is found by itself
    python benchmarks/training/self_taught.py --out runs/self-taught --pictures 128 --steps 4 --grpo-steps 2

The default model draws pictures, which become token shards; it is fine-tuned on them (config default-sft), and then
reinforced to name colours (config smoke-grpo), with rollouts on the live weights. It learns nothing new from that; the
numbers are what is wanted: seconds of a step, where they go, and how far engine and trainer are apart. Fails where the
loss on its own pictures is above 2 nats, or the mismatch above 0.02 on average. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from simplear_engine import Engine
from simplear_train.concepts import COLOURS, CONCEPTS
from simplear_train.token_shards import ShardWriter

DRAWN_AT_ONCE = 64


def prompts() -> list[str]:
    nouns = [concept.noun for concept in CONCEPTS]
    coloured = [f"a {colour} {concept.noun}" for concept in CONCEPTS if concept.recolour for colour in COLOURS]
    return [*(f"a {noun}" for noun in nouns), *(f"a {a} and a {b}" for a, b in zip(nouns, nouns[7:])), *coloured]


def draw_tokens(out: Path, pictures: int) -> None:
    words = prompts()
    with Engine.from_pretrained("default", max_pairs=DRAWN_AT_ONCE) as engine:
        for part, begin, count in (("train", 0, pictures), ("validation", pictures, 64)):
            with ShardWriter(out / part, engine.model.num_codes) as writer:
                for first in range(begin, begin + count, DRAWN_AT_ONCE):
                    wanted = [words[i % len(words)] for i in range(first, min(first + DRAWN_AT_ONCE, begin + count))]
                    for image in engine.generate(wanted, seed=first):
                        writer.add(image.tokens, [image.prompt])


def stage(name: str, *arguments: str) -> list[dict]:
    """Runs a stage; the lines of its log that stand for steps."""
    out = Path(arguments[arguments.index("--out") + 1])
    subprocess.run([sys.executable, "-m", f"simplear_train.{name}", *arguments], check=True)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if "step_s" in row]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--grpo-steps", type=int, default=12)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    draw_tokens(args.out / "tokens", args.pictures)
    (args.out / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts()[-12:]))

    def settings(**values) -> list[str]:
        return [word for name, value in values.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]

    tokens = args.out / "tokens"
    sft = stage(
        "sft", "--config", "default-sft", "--out", str(args.out / "sft"),
        *settings(
            start="default", data__validation=tokens / "validation", loop__steps=args.steps, loop__warmup_steps=1,
            loop__learning_rate=1e-4, loop__log_every=1,
        ),
        "--set", f'data.sources=[{{folder="{tokens / "train"}"}}]',
    )  # fmt: skip
    grpo = stage(
        "grpo", "--config", "smoke-grpo", "--out", str(args.out / "grpo"),
        *settings(
            start=args.out / "sft" / "model", rollout__prompts=args.out / "prompts.txt", loop__steps=args.grpo_steps
        ),
    )  # fmt: skip

    def median(rows: list[dict], key: str) -> float:
        return float(np.median([row[key] for row in rows[len(rows) // 3 :]]))

    found = {
        "sft_step_s": median(sft, "step_s"), "sft_loss": median(sft, "visual_loss"),
        "grpo_step_s": median(grpo, "step_s"),
        **{f"grpo_{name}": median(grpo, name) for name in ("rollout_s", "decode_s", "reward_s", "train_s", "mismatch")},
    }  # fmt: skip
    print(json.dumps({name: round(value, 6) for name, value in found.items()}))
    return 0 if found["sft_loss"] < 2 and found["grpo_mismatch"] < 0.02 else 1


if __name__ == "__main__":
    sys.exit(main())
