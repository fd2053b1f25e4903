"""All stages of a model, one after the other, each as the command that one would type.

    python -m simplear_train.recipe smoke --out runs/smoke        three minutes: shows that everything works
    python -m simplear_train.recipe small --out runs/small        half an hour: stages to compare, on a third of the world
    python -m simplear_train.recipe default --out runs/default    the default model, some hours on two CPU cores

Where there are several GPUs or cores, a stage takes a process for each (parallel.py), in the smoke recipe one process.
A stage that was cut off goes on where it was when the recipe is started again. Needs the train extra, resvg-py and npm
(the art is fetched once). Ends with the first and last figures of every stage that trains the picture tokenizer or the
model, and with an error where one did not get better.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from simplear_engine._C import default_num_threads
from simplear_engine.checkpoint import DEFAULT_MODEL_FOLDER, IMAGE_TOKENIZER_FOLDER

from .concepts import COLOURS
from .worlds import WORLDS

Command = tuple[str, list[str]]  # module, arguments; paths are relative to the output folder

ONE_PROCESS = ("average", "emoji_scenes")  # the others share their work among the processes of torchrun
MOST_PROCESSES = 8  # of a batch of 32 each has four samples then

EMBEDDED = DEFAULT_MODEL_FOLDER / IMAGE_TOKENIZER_FOLDER / "tokenizer.safetensors"
OWN = "tokenizer-run/tokenizer.safetensors"


def image_tokenizer_stages(name: str) -> list[Command]:
    tokens = "tokens" if name == "default" else "tokenizer-run/tokens"
    return [
        ("train_tokenizer", ["--config", f"{name}-tokenizer", "--out", "tokenizer-run", "--resume"]),
        ("extract_tokens", ["--world", name, "--tokenizer", OWN, "--out", tokens]),
        ("refine_decoder", ["--config", f"{name}-decoder", "--out", "decoder-run", "--resume"]),
    ]


def scenes(name: str, kinds: str, tokenizer: str, seed: int, num_scenes: int, out: str) -> Command:
    stream = ["--world", name, "--kinds", kinds, "--seed", str(seed), "--num-scenes", str(num_scenes)]
    return "extract_tokens", [*stream, "--tokenizer", tokenizer, "--out", out]


def prompts(name: str, kinds: str = "balanced", number: int = 4000) -> Command:
    """For reinforcement."""
    stream = ["--world", name, "--kinds", kinds, "--seed", "2000", "--num-prompts", str(number)]
    return "emoji_scenes", [*stream, "--prompts", "prompts.txt"]


def reward(name: str, steps: int, words: str, image_tokenizer: str) -> Command:
    sources = ["--steps", str(steps), "--tokenizer", words, "--image-tokenizer", image_tokenizer]
    return "rewards.train_emoji_clip", ["--world", name, *sources, "--out", "reward", "--resume"]


def language_stage(name: str, stage: str, start: str | None = None) -> Command:
    started = ["--set", f"start={start}/model"] if start else []
    return stage.partition("-")[0], ["--config", f"{name}-{stage}", *started, "--out", stage, "--resume"]


def data_stages(name: str) -> list[Command]:
    """What a model of the embedded picture tokenizer is trained on, and with."""
    embedded = str(EMBEDDED)
    if name == "smoke":
        return [("extract_tokens", ["--world", name, "--tokenizer", embedded, "--out", "tokens"])]
    return [
        ("extract_tokens", ["--world", name, "--tokenizer", embedded, "--out", "tokens"]),
        scenes(name, "balanced", embedded, 3000, 24_576, "sft-tokens"),
        prompts(name),
        reward(name, 600, str(DEFAULT_MODEL_FOLDER / "tokenizer.json"), embedded),
    ]


def commands(name: str) -> list[Command]:
    if name == "default":
        return [
            *image_tokenizer_stages(name),
            language_stage(name, "pretrain"),
            scenes(name, "balanced", OWN, 1000, 100_000, "sft-tokens"),
            language_stage(name, "sft", "pretrain"),
            scenes(name, "wide", OWN, 5000, 106_496, "wide-tokens"),
            language_stage(name, "sft-wide", "sft"),
            ("average", ["--models", "sft-wide/model-9000", "sft-wide/model", "--out", "average/model"]),
            language_stage(name, "distil", "average"),
            prompts(name, "reinforcement", 192),
            reward(name, 2000, "pretrain/model/tokenizer.json", "tokenizer/tokenizer.safetensors"),
            language_stage(name, "grpo", "distil"),
        ]  # fmt: skip
    # A picture tokenizer of sixty steps knows no colours: what follows it has the embedded one to learn from.
    return [
        *(image_tokenizer_stages(name) if name == "smoke" else []),
        *data_stages(name),
        language_stage(name, "pretrain"), language_stage(name, "sft", "pretrain"), language_stage(name, "grpo", "sft"),
    ]  # fmt: skip


def default_processes(name: str) -> int:
    """One for each GPU; without one, for each core: a power of two, so that batches have equal parts."""
    import torch

    if name == "smoke":  # Stages of seconds: starting processes would take longer than they save.
        return 1
    count = torch.cuda.device_count() or default_num_threads()
    return 1 << min(count, MOST_PROCESSES).bit_length() - 1


def run_all(stages: list[Command], name: str, out: Path, processes: int = 1) -> None:
    # Modules are found from the output folder, too, where the package is not installed.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, map(str, (Path.cwd(), os.environ.get("PYTHONPATH"))))),
    }
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    if processes > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, default_num_threads() // processes)))
    for module, arguments in stages:
        launcher = torchrun if processes > 1 and module not in ONE_PROCESS else []
        command = [sys.executable, "-m", *launcher, f"simplear_train.{module}", *arguments]
        print(f"\n$ {shlex.join(['python', *command[1:]])}", flush=True)
        ended = subprocess.run(command, cwd=out, env=environment)
        if ended.returncode:
            sys.exit(f"simplear_train.{module} failed; started again, the recipe goes on from here")
        if module == "refine_decoder":
            collect_image_tokenizer(name, out)


def prepare(name: str, out: Path, trained_reward: Path | None = None) -> None:
    """Only what comes before the language stages, with the embedded picture tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    collect_image_tokenizer(name, out)
    stages = data_stages(name)
    if trained_reward:
        shutil.copytree(trained_reward, out / "reward", dirs_exist_ok=True)
        stages = [stage for stage in stages if stage[0] != "rewards.train_emoji_clip"]
    run_all(stages, name, out)


def write_colour_prompts(path: Path, name: str) -> None:
    nouns = [concept.noun for concept in WORLDS[name].concepts if concept.recolour]
    path.write_text("".join(f"a {colour} {noun}\n" for noun in nouns for colour in COLOURS))


def collect_image_tokenizer(name: str, out: Path) -> None:
    """The folder that model folders take along as vq/."""
    embedded = DEFAULT_MODEL_FOLDER / IMAGE_TOKENIZER_FOLDER
    (out / "tokenizer").mkdir(exist_ok=True)
    source = out / "decoder-run" if name == "default" else embedded
    shutil.copy(source / "tokenizer.safetensors", out / "tokenizer" / "tokenizer.safetensors")


def first_and_last(log: Path, key: str) -> tuple[float, float]:
    """Means of the first and the last fifth of a log's values: single steps are noisy."""
    values = [row[key] for row in map(json.loads, log.read_text().splitlines()) if row.get(key) is not None]
    part = max(1, len(values) // 5)
    return sum(values[:part]) / part, sum(values[-part:]) / part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=("smoke", "small", "default"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--processes", type=int, metavar="N", help="of each stage (default: a GPU each, or a core each)"
    )
    args = parser.parse_args()
    if args.processes is not None and args.processes < 1:
        parser.error(f"--processes: expected at least 1, got {args.processes}")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.recipe == "smoke":
        write_colour_prompts(args.out / "prompts.txt", "smoke")
    if args.recipe == "small":
        collect_image_tokenizer(args.recipe, args.out)
    run_all(commands(args.recipe), args.recipe, args.out, args.processes or default_processes(args.recipe))
    print()
    failures = []
    names = ("tokenizer-run", "decoder-run", "pretrain", "sft", "sft-wide", "distil", "grpo")
    runs = [run for run in names if (args.out / run).exists()]
    for run in runs:
        key, sign = ("reward", 1) if run == "grpo" else ("loss", -1)
        first, last = first_and_last(args.out / run / "log.jsonl", key)
        print(f"{run:14} {key:7} {first:8.4f} -> {last:8.4f}")
        if not sign * (last - first) > 0:
            failures.append(run)
    if failures:
        sys.exit(f"no better than at the start: {', '.join(failures)}")
    # The embedded model is not the last one: with top-k 2 it draws as well without reinforcement.
    model = args.out / ("distil" if args.recipe == "default" else "grpo") / "model"
    print(f"the model: {model}")
    if args.recipe == "default":
        print(
            f"to ship it: python -m simplear_train.ship_default --model {model} "
            f"--tokenizer {args.out}/tokenizer/tokenizer.safetensors"
        )


if __name__ == "__main__":
    main()
