"""`image`: seconds to a picture from a cold process, and pictures a second in batches.

Each round starts a fresh process for every model, so that import, loading and the first picture are what a user of the
command line meets (files are in the page cache from the second round on). The same process then draws batches with
pixels, which are decoded beside the next picture's codes. All of them are new pictures, as speculation knows old ones by
heart. The last of a batch must be that of its seed alone, and every one that of the other rounds.
"""

import json
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from simplear_engine.backend import DTYPES, CpuBackend
from simplear_engine.bench import arguments, progress, results
from simplear_engine.bench.models import model_folder
from simplear_engine.bench.timing import Times
from simplear_engine.errors import InternalError, InvalidRequestError
from simplear_engine.testing.random_checkpoint import SIZES

KEY = ("model", "dtype", "pixels", "batch")
PROMPT = "a red apple"

EXAMPLES = """\
examples:
  python -m simplear_engine.bench image
      the embedded model, and random 0.5b weights at 512 x 512 (minutes)
  python -m simplear_engine.bench image --model default --rounds 9
  python -m simplear_engine.bench image --model 0.5b --pixels 256 --batch 1,4,16
  python -m simplear_engine.bench image --model ./my-checkpoint --dtype float32 --save

batch 1: one picture after another. batch N: N pictures asked for at once; the ratio is what that gains for each.
"""


def add_arguments(parser) -> None:
    parser.add_argument(
        "--model", default="default,0.5b",
        help=f"some of default, {', '.join(SIZES)} (random weights) and folders (default: default,0.5b)",
    )  # fmt: skip
    parser.add_argument("--dtype", default="auto", help=f"auto, {', '.join(DTYPES)} (default: auto)")
    parser.add_argument("--pixels", help="side of the pictures (default: the model's)")
    parser.add_argument("--batch", default="1,8", help="pictures at once (default: 1,8)")
    parser.add_argument("--rounds", default="3", help="processes for each model (default: 3)")


def run(options) -> dict:
    (rounds,) = arguments.integers("--rounds", options.rounds, 1, 1000, one=True)
    batches = arguments.integers("--batch", options.batch, 1, 64)
    if batches[0] != 1:
        batches.insert(0, 1)  # the yardstick of the others
    pixels = arguments.integers("--pixels", options.pixels, 1, 1 << 14, one=True)[0] if options.pixels else None
    (dtype,) = arguments.one_of_each("--dtype", options.dtype, ("auto", *DTYPES))[:1]
    names = list(dict.fromkeys(options.model.split(",")))
    backend = CpuBackend(options.threads)
    with ExitStack() as stack:
        folders = {}
        for name in names:
            folder, _ = stack.enter_context(model_folder(None, name, default="default", image_tokenizer=True))
            folders[name] = str(folder.resolve())
        asked = {"dtype": dtype, "threads": backend.pool.size, "pixels": pixels, "batches": batches, "prompt": PROMPT}
        answers: dict[str, list[dict]] = {name: [] for name in names}
        with progress.bar(total=rounds * len(names), desc="cold processes") as bar:
            for _ in range(rounds):
                for name, folder in folders.items():
                    answers[name].append(draw({**asked, "model": folder}))
                    bar.update()
    rows = [row for name in names for row in rows_of(name, answers[name])]
    return results.document("image", backend, rows, KEY, "s", rounds=rounds, prompt=PROMPT)


def draw(asked: dict) -> dict:
    """What a fresh process found; `total` is its whole life as the shell sees it, batches left out."""
    child = [sys.executable, str(Path(__file__).with_name("image_child.py"))]
    asked = {**asked, "clock": time.clock_gettime(time.CLOCK_MONOTONIC)}
    ended = subprocess.run([*child, json.dumps(asked)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if ended.returncode != 0:
        told = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        # The last line of a traceback is the error; of a typed one the text is enough.
        told = re.sub(r"^simplear_engine\.errors\.\w+: ", "", told)
        raise (InternalError if told.startswith("seed ") else InvalidRequestError)(f"image: {told}")
    return json.loads(ended.stdout.splitlines()[-1])


def rows_of(name: str, answers: list[dict]) -> list[dict]:
    """A row for each batch size; that of batch 1 has the phases of the cold process too."""
    first = answers[0]
    if any(answer["digests"] != first["digests"] for answer in answers):
        raise InternalError(f"image: {name} draws another picture in another process")
    rows = []
    alone = Times.of(answer["seconds_per_image"]["1"] for answer in answers).median
    for batch in first["seconds_per_image"]:
        times = Times.of(answer["seconds_per_image"][batch] for answer in answers)
        row = {
            "model": name, "dtype": first["dtype"], "pixels": first["size"][0], "batch": int(batch),
            **times.fields("s"), "images_per_s": 1 / times.median, "times_alone": alone / times.median,
        }  # fmt: skip
        if batch == "1":
            row["cold_s"] = {
                phase: Times.of(answer["phases"][phase] for answer in answers).fields("s") for phase in first["phases"]
            }
        rows.append(row)
    return rows


def lines(document: dict) -> list[str]:
    told = []
    for row in document["rows"]:
        if "cold_s" in row:
            told += [
                "",
                f"{row['model']} {row['dtype']}, {row['pixels']} px: a cold process",
                f"{'phase':<14} {'s':>8}",
            ]
            for phase, seconds in row["cold_s"].items():
                told.append(
                    f"{phase:<14} {seconds['s']:>8.3f} (p10 {seconds['p10_s']:.3f}, p90 {seconds['p90_s']:.3f})"
                )
        told.append(
            f"batch {row['batch']:>2}, pixels included: {row['s']:.4f} s a picture (p10 {row['p10_s']:.4f}, p90 "
            f"{row['p90_s']:.4f}), {row['images_per_s']:.2f} images/s, {row['times_alone']:.2f} times alone"
        )
    return told
