"""Learn which codes a model puts beside which, so that speculation guesses well from the first picture on.

    python -m simplear_train.learn_drafts --model simplear_engine/default_model --pictures 6000
    python -m simplear_train.learn_drafts --model my-model --prompts prompts.txt --pictures 20000 --min-seen 1

Draws pictures with the engine, at the checkpoint's own settings, and writes the table of drafts that it learnt on the way to
drafts.safetensors in the checkpoint's folder (8 bytes an entry; --min-seen 1 keeps three times as many). Prompts are the captions of training scenes, or the lines of a file. Do it again when the weights have
changed: an old table changes no picture, but guesses badly.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from simplear_engine import Engine
from simplear_engine.draft_file import FILE_NAME
from simplear_engine.errors import InvalidRequestError, SimplearError

PICTURES_AT_ONCE = 64


def check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InvalidRequestError(
            f"--model: expected the folder of a checkpoint, which {FILE_NAME} goes into, got {folder}"
        )


def captions(count: int, seed: int) -> list[str]:
    """Captions of training scenes (emoji_scenes.py)."""
    from .emoji_scenes import SceneMaker

    maker = SceneMaker(seed, side=128)
    return [maker.scene(index).caption for index in range(count)]


def learn(folder: Path, prompts: list[str], min_seen: int, threads: int | None) -> int:
    """Draws each prompt once and writes the table; returns its size."""
    (folder / FILE_NAME).unlink(missing_ok=True)
    with Engine.from_pretrained(folder, threads=threads, max_pairs=16) as engine:
        for first in tqdm(range(0, len(prompts), PICTURES_AT_ONCE), unit_scale=PICTURES_AT_ONCE, unit="picture"):
            engine.generate(prompts[first : first + PICTURES_AT_ONCE], seed=first, speculation="auto")
        return engine.save_drafts(folder / FILE_NAME, min_seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, required=True, help="a checkpoint's folder; drafts.safetensors goes there"
    )
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--prompts", type=Path, help="a prompt a line, used by turns")
    parser.add_argument("--min-seen", type=int, default=2, help="leave out neighbours that occurred more rarely")
    parser.add_argument("--seed", type=int, default=1, help="of the captions")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    try:
        check_folder(arguments.model)
        if arguments.prompts:
            from .rollout import read_prompts

            lines = read_prompts(arguments.prompts)
            prompts = [lines[i % len(lines)] for i in range(arguments.pictures)]
        else:
            prompts = captions(arguments.pictures, arguments.seed)
        count = learn(arguments.model, prompts, arguments.min_seen, arguments.threads)
    except SimplearError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"{arguments.model / FILE_NAME}: {count} entries")


if __name__ == "__main__":
    main()
