"""All stages of a model, one after the other, each as the command that one would type.

    python -m simplear_train.recipe smoke --out runs/smoke        three minutes: shows that everything works
    python -m simplear_train.recipe default --out runs/default    the default model, some hours on two CPU cores

A stage that was cut off goes on where it was when the recipe is started again. Needs the train extra, resvg-py and npm
(the art is fetched once). Ends with the first and last figures of every stage, and with an error where one did not
get better.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from simplear_engine.checkpoint import DEFAULT_MODEL_FOLDER, IMAGE_TOKENIZER_FOLDER

from .concepts import COLOURS
from .worlds import WORLDS


def commands(name: str) -> list[tuple[str, list[str]]]:
    """(module, arguments) of every stage; paths are relative to the output folder."""
    world = ["--world", name]
    own = ["--tokenizer", "tokenizer-run/tokenizer.safetensors"]
    stages = [
        ("train_tokenizer", ["--config", f"{name}-tokenizer", "--out", "tokenizer-run", "--resume"]),
        ("extract_tokens", [*world, *own, "--out", "tokens" if name == "default" else "tokenizer-run/tokens"]),
        ("refine_decoder", ["--config", f"{name}-decoder", "--out", "decoder-run", "--resume"]),
    ]
    if name == "smoke":
        # A picture tokenizer of sixty steps knows no colours: what follows would have nothing to learn.
        embedded = str(DEFAULT_MODEL_FOLDER / IMAGE_TOKENIZER_FOLDER / "tokenizer.safetensors")
        stages.append(("extract_tokens", [*world, "--tokenizer", embedded, "--out", "tokens"]))
    stages.append(("pretrain", ["--config", f"{name}-pretrain", "--out", "pretrain", "--resume"]))
    if name == "default":
        balanced = [*world, "--kinds", "balanced"]
        reward = ["--out", "reward", "--resume", "--tokenizer", "pretrain/model/tokenizer.json"]
        stages += [
            ("extract_tokens", [*balanced, *own, "--seed", "1000", "--num-scenes", "100000", "--out", "sft-tokens"]),
            ("emoji_scenes", [*balanced, "--seed", "2000", "--prompts", "prompts.txt"]),
            ("rewards.train_emoji_clip", [*reward, "--image-tokenizer", "tokenizer/tokenizer.safetensors"]),
        ]
    return [
        *stages,
        ("sft", ["--config", f"{name}-sft", "--set", "start=pretrain/model", "--out", "sft", "--resume"]),
        ("grpo", ["--config", f"{name}-grpo", "--set", "start=sft/model", "--out", "grpo", "--resume"]),
    ]


def write_colour_prompts(path: Path, name: str) -> None:
    nouns = [concept.noun for concept in WORLDS[name].concepts if concept.recolour]
    path.write_text("".join(f"a {colour} {noun}\n" for noun in nouns for colour in COLOURS))


def collect_image_tokenizer(name: str, out: Path) -> None:
    """The folder that model folders take along as vq/."""
    embedded = DEFAULT_MODEL_FOLDER / IMAGE_TOKENIZER_FOLDER
    (out / "tokenizer").mkdir(exist_ok=True)
    source = embedded if name == "smoke" else out / "decoder-run"
    shutil.copy(source / "tokenizer.safetensors", out / "tokenizer" / "tokenizer.safetensors")


def first_and_last(log: Path, key: str) -> tuple[float, float]:
    """Means of the first and the last fifth of a log's values: single steps are noisy."""
    values = [row[key] for row in map(json.loads, log.read_text().splitlines()) if row.get(key) is not None]
    part = max(1, len(values) // 5)
    return sum(values[:part]) / part, sum(values[-part:]) / part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=("smoke", "default"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.recipe == "smoke":
        write_colour_prompts(args.out / "prompts.txt", "smoke")
    # Modules are found from the output folder, too, where the package is not installed.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, map(str, (Path.cwd(), os.environ.get("PYTHONPATH"))))),
    }
    for module, arguments in commands(args.recipe):
        print(f"\n$ python -m simplear_train.{module} {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", f"simplear_train.{module}", *arguments]
        ended = subprocess.run(command, cwd=args.out, env=environment)
        if ended.returncode:
            sys.exit(f"simplear_train.{module} failed; started again, the recipe goes on from here")
        if module == "refine_decoder":
            collect_image_tokenizer(args.recipe, args.out)
    print()
    failures = []
    for run, key, sign in (
        ("tokenizer-run", "loss", -1), ("decoder-run", "loss", -1), ("pretrain", "loss", -1), ("sft", "loss", -1),
        ("grpo", "reward", 1),
    ):  # fmt: skip
        first, last = first_and_last(args.out / run / "log.jsonl", key)
        print(f"{run:14} {key:7} {first:8.4f} -> {last:8.4f}")
        if sign * (last - first) <= 0:
            failures.append(run)
    if failures:
        sys.exit(f"no better than at the start: {', '.join(failures)}")
    print(f"the model: {args.out / 'grpo' / 'model'}")
    if args.recipe == "default":
        print(
            f"to ship it: python -m simplear_train.ship_default --model {args.out}/grpo/model --tokenizer {args.out}/tokenizer/tokenizer.safetensors"
        )


if __name__ == "__main__":
    main()
