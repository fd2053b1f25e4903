"""Train the detector of EmojiEval, and measure how far it can be trusted.

    python -m simplear_train.emojieval.train_detector --out runs/detector     writes runs/detector/detector.safetensors
    python -m simplear_train.emojieval.train_detector --tokenizer simplear_engine/default_model/vq/tokenizer.safetensors

The report renders every EmojiEval prompt as it should look and judges that picture: against its own prompt (all
should pass) and against the prompt with one fact changed (none should). With --tokenizer the same pictures also pass
through that picture tokenizer, which gives the score that a perfect model over these tokens would get: the ceiling.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..concepts import COLOURS, CONCEPTS
from ..emoji_scenes import BACKGROUNDS, COUNT_LAYOUTS, LARGE, SMALL, Placed, Scene, render
from ..image_tokenizer import load_image_tokenizer
from ..loop import Loop, LoopConfig
from ..parallel import Share, join_peers
from ..sprites import DEFAULT_CACHE, load_sprites
from .detector import SIDE, WEIGHTS, Detector, load_detector, save_detector
from .free_scenes import SPRITE_SIDE, UNKNOWN, FreeScenes, Targets, blur_like_a_tokenizer
from .records import OPPOSITE, TASKS, evaluation_records
from .rules import judge

SEED = 77_000  # of the detector's scenes; no other stage uses this stream


def cross_entropy_of_known(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over known targets. Where there are none it is 0 with gradients of 0: processes average as many of them."""
    total = F.cross_entropy(logits, targets, ignore_index=UNKNOWN, reduction="sum")
    return total / (targets != UNKNOWN).sum().clamp(min=1)


def detector_loss(maps: dict[str, Tensor], targets: Targets) -> Tensor:
    presence, noun, colour, box = (
        torch.from_numpy(value).to(maps["noun"].device)
        for value in (targets.presence, targets.noun, targets.colour, targets.box)
    )
    logits = maps["presence"][:, 0]
    probability = logits.sigmoid()
    # The focal loss of heatmaps: sure cells count little, cells near a centre are excused by degrees.
    at_centre = presence == 1
    hit = -F.logsigmoid(logits) * (1 - probability) ** 2
    miss = -F.logsigmoid(-logits) * probability**2 * (1 - presence) ** 4
    loss = torch.where(at_centre, hit, miss).sum() / at_centre.sum().clamp(min=1)
    loss = loss + cross_entropy_of_known(maps["noun"], noun) + 0.5 * cross_entropy_of_known(maps["colour"], colour)
    near = (noun != UNKNOWN)[:, None]
    return loss + 0.5 * (F.smooth_l1_loss(maps["box"], box, reduction="none") * near).sum() / (4 * near.sum()).clamp(
        min=1
    )


class DetectorTraining:
    """The stage of loop.py."""

    name = "detector"

    def __init__(self, scenes: FreeScenes, batch_size: int, out: Path, device: str, share: Share):
        torch.manual_seed(SEED)
        self.model = Detector().to(device, memory_format=torch.channels_last)
        self.scenes, self.batch_size, self.out, self.device, self.share = scenes, batch_size, out, device, share

    def updates(self, step: int):
        mine = self.share.slice(step * self.batch_size, self.batch_size)
        images, targets = self.scenes.batch(mine.start, len(mine))
        generator = torch.Generator().manual_seed(step)
        inputs = blur_like_a_tokenizer(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, generator)
        yield [(inputs.to(self.device, memory_format=torch.channels_last), targets)]

    def loss(self, batch) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, targets = batch
        return detector_loss(self.model(inputs), targets) / self.share.world_size, {}

    def report(self) -> dict[str, float]:
        return {}

    def validate(self, step: int) -> dict[str, float]:
        return {}

    def export(self, weights: dict[str, Tensor]) -> None:
        save_detector(self.model, self.out / WEIGHTS.name)


def ideal_scene(record: dict, rng: np.random.Generator) -> Scene:
    """What a faithful model would draw."""
    concepts = {c.noun: c for c in CONCEPTS}

    def place(asked: dict, x: int, y: int, size: int) -> Placed:
        concept, colour = concepts[asked["class"]], asked.get("color")
        return Placed(concept.noun, concept.recolour if colour else concept.icons[0], colour, x, y, size)

    include = record["include"]
    if len(include) == 2:
        relation = include[1].get("position", ["right of"])[0]
        places = ((2, 0), (2, 4)) if relation in ("above", "below") else ((0, 2), (4, 2))
        order = include if relation in ("right of", "below") else include[::-1]
        objects = [place(asked, x, y, SMALL) for asked, (x, y) in zip(order, places)]
    elif include[0]["count"] > 1:
        objects = [place(include[0], x, y, SMALL) for x, y in COUNT_LAYOUTS[include[0]["count"]]]
    else:
        objects = [place(include[0], *(int(v) for v in rng.integers(0, 3, 2)), LARGE)]
    return Scene(record["tag"], str(rng.choice(list(BACKGROUNDS))), tuple(objects), None, record["prompt"])


def change_one_fact(record: dict, rng: np.random.Generator) -> dict:
    """The same record with another class, count, colour or direction; what was true for it is false for this."""
    changed = json.loads(json.dumps(record))
    last = changed["include"][-1]
    if record["tag"] == "counting":
        last["count"] += 1 if last["count"] == 2 or rng.random() < 0.5 else -1
        changed["exclude"] = [{"class": last["class"], "count": last["count"] + 1}]
    elif "color" in last:
        last["color"] = str(rng.choice([c for c in COLOURS if c != last["color"]]))
    elif "position" in last:
        last["position"][0] = OPPOSITE[last["position"][0]]
    else:
        present = {asked["class"] for asked in record["include"]}
        last["class"] = str(rng.choice([c.noun for c in CONCEPTS if c.noun not in present]))
    return changed


@torch.no_grad()
def report(detector: Detector, cache_dir: Path, tokenizer_path: Path | None, seed: int = SEED + 1) -> dict:
    """{pictures: {accepted: {task: share, mean}, accepted_wrong_by_one: ...}}"""
    sprites, rng = load_sprites((SPRITE_SIDE, 96, 64), cache_dir), np.random.default_rng(seed)
    records = evaluation_records()
    images = {"rendered": np.stack([render(ideal_scene(r, rng), sprites, SIDE) for r in records])}
    if tokenizer_path is not None:
        tokenizer = load_image_tokenizer(tokenizer_path)
        decoded = []
        for begin in range(0, len(records), 32):
            batch = torch.from_numpy(images["rendered"][begin : begin + 32]).permute(0, 3, 1, 2).float() / 127.5 - 1
            pixels = tokenizer.decode(tokenizer.encode(batch)).clamp(-1, 1)
            decoded.append(((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
        images["reconstructed"] = np.concatenate(decoded)
    wrong = [change_one_fact(record, rng) for record in records]
    result = {}
    for name, pictures in images.items():
        found = detector.detect(pictures)
        result[name] = {}
        for question, asked in (("accepted", records), ("accepted_wrong_by_one", wrong)):
            verdicts = [judge(record, objects)[0] for record, objects in zip(asked, found)]
            shares = {
                task: float(np.mean([v for v, r in zip(verdicts, records) if r["tag"] == task])) for task in TASKS
            }
            result[name][question] = {**shares, "mean": float(np.mean(list(shares.values())))}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder to train in; without it, the weights in use are measured")
    parser.add_argument("--tokenizer", type=Path, help="picture tokenizer to look through in the report")
    parser.add_argument("--steps", type=int, default=550)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint, if it has one")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    weights = WEIGHTS
    if args.out:
        share = join_peers(args.device)
        scenes = FreeScenes(SEED, load_sprites((SPRITE_SIDE, 96, 64), args.cache_dir))
        loop = LoopConfig(
            steps=args.steps, learning_rate=2e-3, schedule="cosine", min_learning_rate=2e-5, warmup_steps=30,
            weight_decay=0.02, beta2=0.95, clip_norm=5.0, save_every=50,
        )  # fmt: skip
        stage = DetectorTraining(scenes, args.batch_size, args.out, args.device, share)
        Loop(stage, loop, args.out, args.device, share).run(args.resume)
        weights = args.out / WEIGHTS.name
        if not share.is_first:
            return
    for pictures, questions in report(load_detector(weights), args.cache_dir, args.tokenizer).items():
        for question, shares in questions.items():
            print(f"{pictures:14s}{question:22s}", "  ".join(f"{task} {share:.3f}" for task, share in shares.items()))


if __name__ == "__main__":
    main()
