"""Draw every EmojiEval prompt some times with the engine, judge the pictures, write scores and contact sheets.

    python -m simplear_train.emojieval --model default --out runs/emojieval
    python -m simplear_train.emojieval --model runs/sft/model --out runs/emojieval-sft --guidance-scale 1.2 --top-k 3

Writes to OUT: scores.json (tasks, overall, intervals, and all that is needed to repeat them), results.jsonl (a line
for each picture, GenEval's keys), TASK.png and overview.png (evenly spaced prompts, nothing
selected; green passed, red did not). With --keep-pictures also the pictures, in the folders that GenEval's own scorer
reads. The scores belong to emoji scenes and to this detector: they compare models with each other here and say
nothing beside published GenEval numbers.
"""

import argparse
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from simplear_engine.sampling import SPECULATIONS

from ..contact_sheet import sheet
from ..live_engine import ROOM_FOR_ANY_STEP
from ..worlds import WORLDS
from .records import TASKS, evaluation_records
from .rules import judge
from .score import scores

PICTURES_PER_PROMPT = 4  # as in GenEval; more make a comparison of models finer
PROMPTS_PER_SHEET = 8
CALLS_AT_ONCE = 4  # prompts that the engine has in flight, so that its batches are full


def seed_of(base: int, prompt_index: int, num_pictures: int) -> int:
    """Of a prompt's first picture; the others follow it, and no two pictures of a run share a seed."""
    return base + prompt_index * num_pictures


def draw(engine, records: list[dict], seed: int, num_pictures: int, **sampling) -> np.ndarray:
    """uint8 [prompts, pictures, H, W, 3]"""

    def pictures(index: int) -> np.ndarray:
        prompt, first = records[index]["prompt"], seed_of(seed, index, num_pictures)
        drawn = engine.generate(prompt, num_images=num_pictures, seed=first, **sampling)
        return np.stack([np.asarray(image.pil) for image in drawn])

    with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
        every = pool.map(pictures, range(len(records)))
        return np.stack(list(tqdm(every, total=len(records), desc="pictures", unit="prompt")))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p.read_bytes()) for p in sorted(folder.rglob("*.safetensors"))}


def evenly(records: list[dict], task: str, number: int) -> list[int]:
    """Indices of `number` records of a task, spread over all of them."""
    of_task = [i for i, record in enumerate(records) if record["tag"] == task]
    return [of_task[i] for i in np.linspace(0, len(of_task) - 1, min(number, len(of_task))).astype(int)]


def write_sheet(path: Path, chosen: list[int], records: list[dict], images: np.ndarray, correct: np.ndarray) -> None:
    """The first pictures of each chosen prompt, as many as there are by default."""
    number = min(images.shape[1], PICTURES_PER_PROMPT)
    pictures = [image for i in chosen for image in images[i, :number]]
    captions = [records[i]["prompt"].removeprefix("a photo of ") for i in chosen for _ in range(number)]
    outlines = ["#2a9d3a" if passed else "#d62828" for i in chosen for passed in correct[i, :number]]
    sheet(pictures, tuple(captions), columns=2 * number, outlines=tuple(outlines)).save(path, optimize=True)


def write_pictures(out: Path, records: list[dict], images: np.ndarray) -> None:
    from PIL import Image

    for index, (record, pictures) in enumerate(zip(records, images)):
        folder = out / f"{index:05d}"
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / "metadata.jsonl").write_text(json.dumps(record) + "\n")
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / "samples" / f"{number:04d}.png")


def evaluate(
    model: str, out: Path, seed: int = 0, keep_pictures: bool = False, dtype: str = "auto", held_out: bool = True,
    world: str = "default", num_pictures: int = PICTURES_PER_PROMPT, **sampling,
) -> dict:  # fmt: skip
    """The contents of scores.json. `sampling` goes to Engine.generate; None stands for the model's own default."""
    from simplear_engine import Engine
    from simplear_engine.checkpoint import resolve

    from .detector import SIDE, WEIGHTS, load_detector

    records, detector = evaluation_records(held_out, WORLDS[world].concepts), load_detector()
    out.mkdir(parents=True, exist_ok=True)
    with Engine.from_pretrained(model, dtype=dtype, max_queue=ROOM_FOR_ANY_STEP) as engine:
        images = draw(engine, records, seed, num_pictures, height=SIDE, width=SIDE, **sampling)
        defaults = {name: getattr(engine.defaults, name) for name in ("guidance_scale", "top_k")}
    found = detector.detect(images.reshape(-1, *images.shape[2:]))
    verdicts = [judge(records[i // num_pictures], objects) for i, objects in enumerate(found)]
    correct = np.array([passed for passed, _ in verdicts]).reshape(len(records), num_pictures)

    with (out / "results.jsonl").open("w") as file:
        for i, (passed, reason) in enumerate(verdicts):
            index, number = divmod(i, num_pictures)
            record = records[index]
            line = {
                "filename": f"{index:05d}/samples/{number:04d}.png", "tag": record["tag"], "prompt": record["prompt"],
                "correct": passed, "reason": reason, "seed": seed_of(seed, index, num_pictures) + number, "metadata": record,
                "details": [vars(d) for d in found[i]],
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
    for task in TASKS:
        write_sheet(out / f"{task}.png", evenly(records, task, PROMPTS_PER_SHEET), records, images, correct)
    write_sheet(out / "overview.png", [i for task in TASKS for i in evenly(records, task, 2)], records, images, correct)
    if keep_pictures:
        write_pictures(out, records, images)
    result = {
        **scores(records, correct),
        "model": model,
        "dtype": dtype,
        "held_out": held_out,
        "world": world,
        "seed": seed,
        "pictures_per_prompt": num_pictures,
        "sampling": {**defaults, "temperature": 1.0, **{k: v for k, v in sampling.items() if v is not None}},
        "engine_version": version("simplear-engine"),
        "sha256": {
            "weights": hashes(resolve(model)),
            "prompts": sha256(json.dumps(records, sort_keys=True).encode()),
            "detector": sha256(WEIGHTS.read_bytes()),
            "pictures": sha256(images.tobytes()),
        },
    }
    (out / "scores.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m simplear_train.emojieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help='folder that the engine loads, or "default"')
    parser.add_argument("--out", type=Path, required=True, help="folder for scores.json, results.jsonl and sheets")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the others count on from it")
    parser.add_argument("--guidance-scale", type=float, help="instead of the model's own")
    parser.add_argument(
        "--top-k", type=int, help="instead of the model's own; as many as the model has codes leaves none out"
    )
    parser.add_argument(
        "--pictures", type=int, default=PICTURES_PER_PROMPT, help="of each prompt (default: %(default)s)"
    )
    parser.add_argument(
        "--speculation", default="auto", choices=[name for name in SPECULATIONS if name],
        help="of Engine.generate; the inexact modes draw other pictures (default: auto)",
    )  # fmt: skip
    parser.add_argument("--draft-window", type=int, help="codes verified in a step")
    parser.add_argument(
        "--dtype", default="auto", help="what the engine rounds weights to: float32, bfloat16, int8, int4"
    )
    parser.add_argument("--seen", action="store_true", help="ask for facts that training shows, to compare with")
    parser.add_argument("--world", choices=list(WORLDS), default="default", help="whose concepts are asked for")
    parser.add_argument("--keep-pictures", action="store_true", help="also write 00000/samples/0000.png and so on")
    args = parser.parse_args()
    result = evaluate(
        args.model, args.out, args.seed, args.keep_pictures, args.dtype, not args.seen, args.world, args.pictures,
        guidance_scale=args.guidance_scale, top_k=args.top_k, speculation=args.speculation,
        draft_window=args.draft_window,
    )  # fmt: skip
    for task, entry in (*result["tasks"].items(), ("overall", result["overall"])):
        print(f"{task:14s} {entry['score']:.3f}  ({entry['interval'][0]:.3f} to {entry['interval'][1]:.3f})")
    print(args.out / "scores.json")


if __name__ == "__main__":
    main()
