"""Train the towers of emoji_clip.py on scenes and their captions.

In runs/, where the configs of reinforcement look for the reward:

    python -m simplear_train.rewards.train_emoji_clip --tokenizer pretrain/model/tokenizer.json \\
        --image-tokenizer tokenizer/tokenizer.safetensors --out reward

Every picture of a batch must find its caption among all captions of the batch and among three of its own that are
wrong by one fact: another thing, colour, number or direction, or two things that changed places. And every caption must
find its picture, among all and among two that are made for it: of such a wrong scene, and its own with half of a
thing cut away. That is what reinforcement asks: which of several pictures of one prompt is best? A quarter of the
pictures has been through the picture tokenizer, because what is to be judged comes out of it. Scenes keep the hold-outs
of emoji_scenes and come from a stream that no other stage uses. Writes the reward's folder and log.jsonl into OUT;
`told_apart` is the share of captions that beat all their wrong twins, `pictures_told_apart` that of pictures.
"""

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from ..concepts import COLOURS
from ..emoji_scenes import (
    BALANCED_KINDS,
    COUNT_LAYOUTS,
    PAIR_LAYOUTS,
    Placed,
    Scene,
    SceneMaker,
    render,
    shows_held_out,
)
from ..image_tokenizer import ImageTokenizer, load_image_tokenizer
from ..loop import Loop, LoopConfig
from ..parallel import Share, join_peers
from ..precision import multiplies_bfloat16
from ..run import keep_freed_memory
from ..sprites import DEFAULT_CACHE
from ..worlds import WORLDS
from .emoji_clip import ClipConfig, EmojiClip

SEED = 88_000
WRONG = 3  # captions wrong by one fact, for each picture
WRONG_PICTURES = 2  # for each caption: of a scene wrong by one fact, and a damaged one of its own


def placed_at(objects: list[Placed], places) -> tuple[Placed, ...]:
    return tuple(replace(placed, x=x, y=y) for placed, (x, y) in zip(objects, places))


def wrong_by_one(scene: Scene, maker: SceneMaker, rng: np.random.Generator) -> Scene:
    """The scene with one fact changed."""
    objects = list(scene.objects)
    i = int(rng.integers(len(objects)))
    changes = ["thing", "thing"]
    if len(objects) > 1:
        changes += ["number"] * 3 if scene.relation is None else ["places", "relation"]
    if objects[i].colour:
        changes += ["colour", "colour"]
        if scene.relation and all(p.colour for p in objects) and objects[0].colour != objects[1].colour:
            changes += ["swap colours"] * 2
    change = str(rng.choice(changes))
    if change == "number":
        number = int(rng.choice([n for n in COUNT_LAYOUTS if n != len(objects)]))
        return replace(scene, objects=placed_at(objects[:1] * number, COUNT_LAYOUTS[number]))
    if change == "places":
        return replace(scene, objects=placed_at(objects[::-1], PAIR_LAYOUTS[scene.relation]))
    if change == "relation":
        # Even where the words are "a and b": emoji_scenes says that of level pairs only.
        relation = "above" if scene.relation == "left of" else "left of"
        return replace(scene, relation=relation, objects=placed_at(objects, PAIR_LAYOUTS[relation]))
    if change == "swap colours":
        first, second = objects
        return replace(scene, objects=(replace(first, colour=second.colour), replace(second, colour=first.colour)))
    changed = objects[i]
    if change == "colour":
        changed = replace(changed, colour=str(rng.choice([c for c in COLOURS if c != changed.colour])))
    else:
        present = {p.noun for p in objects}
        fitting = [
            c for c in maker.concepts
            if c.noun not in present
            and (c.recolour or not changed.colour)
            and not (scene.kind == "count" and c.is_mass)
        ]  # fmt: skip
        other = fitting[rng.integers(len(fitting))]
        changed = replace(changed, noun=other.noun, icon=other.recolour if changed.colour else other.icons[0])
    if scene.kind == "count":
        return replace(scene, objects=tuple(replace(changed, x=p.x, y=p.y) for p in objects))
    objects[i] = changed
    return replace(scene, objects=tuple(objects))


def cut_in_half(picture: np.ndarray, other: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A copy in which half of one of the scene's things has gone and `other` is seen in its place."""
    placed = scene.objects[rng.integers(len(scene.objects))]
    cell = len(picture) // 8
    x, y, size = placed.x * cell, placed.y * cell, placed.size * cell
    half, across = size // 2 * int(rng.integers(2)), rng.random() < 0.5
    part = (slice(y + half, y + half + size // 2), slice(x, x + size))
    if across:
        part = (slice(y, y + size), slice(x + half, x + half + size // 2))
    damaged = picture.copy()
    damaged[part] = other[part]
    return damaged


class Pairs:
    """Sample `index`: a picture, its caption, and wrong ones of both; a function of the maker's seed and the number."""

    def __init__(self, maker: SceneMaker, image_tokenizer: ImageTokenizer | None, device: str):
        self.maker, self.image_tokenizer, self.device = maker, image_tokenizer, device

    def batch(self, indices: range) -> tuple[Tensor, list[str], list[list[str]]]:
        """(float [(1 + WRONG_PICTURES) * B, 3, H, W], the first B of them right; B captions; WRONG for each)"""
        scenes, captions, wrong, twins = [], [], [], []
        for index in indices:
            rng = np.random.default_rng((self.maker.seed, index, 99))
            wording = int(rng.integers(6))
            scene = self.maker.scene(index, wording)
            scenes.append(scene)
            captions.append(scene.caption)
            # Said from the same seed as the true one, so that only facts tell them apart.
            said = (self.maker.seed, index, 1 + wording)
            changed = [wrong_by_one(scene, self.maker, rng) for _ in range(WRONG)]
            wrong.append([self.maker.describe(other, said) for other in changed])
            while not (fitting := [other for other in changed if not shows_held_out(other)]):
                changed.append(wrong_by_one(scene, self.maker, rng))
            twins.append(fitting[0])
        right = [self._render(scene) for scene in scenes]
        damaged = [
            cut_in_half(picture, other, scene, np.random.default_rng((self.maker.seed, index, 98)))
            for index, picture, other, scene in zip(indices, right, right[1:] + right[:1], scenes)
        ]
        pictures = [*right, *(self._render(twin) for twin in twins), *damaged]
        images = torch.from_numpy(np.stack(pictures)).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self._distort(images, indices.start), captions, wrong

    def _render(self, scene: Scene) -> np.ndarray:
        return render(scene, self.maker.sprites, self.maker.side)

    @torch.no_grad()
    def _distort(self, images: Tensor, seed: int) -> Tensor:
        """A quarter softened, a quarter encoded and decoded, half as rendered; a little noise on all. A picture and its
        wrong ones fare alike, so that only facts tell them apart."""
        generator = torch.Generator().manual_seed(seed)
        sets = images.unflatten(0, (1 + WRONG_PICTURES, -1))
        number, quarter = sets.shape[1], sets.shape[1] // 4
        softened, decoded = sets[:, :quarter], sets[:, quarter : 2 * quarter]
        small = F.interpolate(softened.flatten(0, 1), scale_factor=0.4, mode="bilinear", antialias=True)
        softened.copy_(F.interpolate(small, images.shape[-2:], mode="bilinear").view_as(softened))
        if self.image_tokenizer is not None:
            with torch.autocast(
                torch.device(self.device).type, torch.bfloat16, enabled=multiplies_bfloat16(self.device)
            ):
                seen = self.image_tokenizer(decoded.flatten(0, 1))
            decoded.copy_(seen.float().clamp(-1, 1).view_as(decoded))
        noise = torch.randn(sets.shape, generator=generator).to(self.device)
        strength = torch.rand(number, 1, 1, 1, generator=generator).to(self.device) * 0.06
        return (sets + noise * strength).clamp(-1, 1).flatten(0, 1)


def contrastive_loss(model: EmojiClip, images: Tensor, captions: list[str], wrong: list[list[str]]):
    """(loss, share of captions that beat their own wrong ones, the same of pictures)"""
    number = len(captions)
    pictures = model.image_vectors(images)
    texts = model.text_vectors(captions + [c for own in wrong for c in own])
    scale = model.log_scale.clamp(max=4.6).exp()
    among_all = scale * pictures[:number] @ texts[:number].T
    # The same words may describe two scenes of a batch, and a wrong caption may say the truth in other words.
    same = torch.tensor([[a == b and i != j for j, b in enumerate(captions)] for i, a in enumerate(captions)])
    among_all = among_all.masked_fill(same.to(among_all.device), -1e4)
    own_texts = scale * torch.einsum("bd,bwd->bw", pictures[:number], texts[number:].view(number, WRONG, -1))
    said = torch.tensor([[w == c for w in ws] for c, ws in zip(captions, wrong)], device=own_texts.device)
    own_texts = own_texts.masked_fill(said, -1e4)
    own_pictures = scale * torch.einsum(
        "bd,wbd->bw", texts[:number], pictures[number:].view(WRONG_PICTURES, number, -1)
    )
    target = torch.arange(number, device=among_all.device)
    loss = F.cross_entropy(torch.cat([among_all, own_texts], 1), target)
    loss = loss + F.cross_entropy(torch.cat([among_all.T, own_pictures], 1), target)
    right = among_all.diagonal()[:, None]
    for own in own_texts, own_pictures:
        loss = loss + F.cross_entropy(torch.cat([right, own], 1), torch.zeros_like(target))
    told_apart = [(right > own).all(1).float().mean() for own in (own_texts, own_pictures)]
    return loss, *told_apart


class EmojiClipTraining:
    """The stage of loop.py. Several processes contrast each its own pictures."""

    name = "emoji_clip"

    def __init__(self, model: EmojiClip, pairs: Pairs, batch_size: int, out: Path, share: Share):
        self.model, self.pairs, self.batch_size, self.out, self.share = model, pairs, batch_size, out, share

    def updates(self, step: int):
        yield [self.pairs.batch(self.share.slice(step * self.batch_size, self.batch_size))]

    def loss(self, batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, *told_apart = (part / self.share.world_size for part in contrastive_loss(self.model, *batch))
        return loss, dict(zip(("told_apart", "pictures_told_apart"), told_apart))

    def report(self) -> dict[str, float]:
        return {}

    def validate(self, step: int) -> dict[str, float]:
        """Of unseen scenes, the shares whose caption beats its wrong twins and whose picture does."""
        unseen = Pairs(replace_seed(self.pairs.maker), self.pairs.image_tokenizer, self.pairs.device)
        found = [
            [part.item() for part in contrastive_loss(self.model, *unseen.batch(range(begin, begin + 96)))[1:]]
            for begin in range(0, 384, 96)
        ]
        return dict(zip(("unseen_told_apart", "unseen_pictures_told_apart"), np.mean(found, 0).tolist()))

    def export(self, weights: dict[str, Tensor]) -> None:
        self.model.save(self.out)


def replace_seed(maker: SceneMaker) -> SceneMaker:
    unseen = copy.copy(maker)
    unseen.seed = maker.seed + 1
    return unseen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; the reward's option `folder`")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json to read captions with")
    parser.add_argument(
        "--image-tokenizer", type=Path, help="picture tokenizer to look through; without it, clean scenes"
    )
    parser.add_argument("--world", choices=list(WORLDS), default="default", help="whose concepts it tells apart")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint, if it has one")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    keep_freed_memory()
    share = join_peers(args.device)
    torch.manual_seed(SEED)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    model = EmojiClip(ClipConfig(tokenizer.get_vocab_size()), tokenizer).to(args.device)
    glasses = load_image_tokenizer(args.image_tokenizer).to(args.device) if args.image_tokenizer else None
    maker = SceneMaker(SEED, 128, args.cache_dir, WORLDS[args.world].concepts, BALANCED_KINDS)
    pairs = Pairs(maker, glasses, args.device)
    loop = LoopConfig(
        steps=args.steps, learning_rate=1.5e-3, schedule="cosine", min_learning_rate=1e-5, warmup_steps=30,
        weight_decay=0.05, beta2=0.98, validate_every=200, save_every=50,
    )  # fmt: skip
    stage = EmojiClipTraining(model, pairs, args.batch_size, args.out, share)
    Loop(stage, loop, args.out, args.device, share).run(args.resume)


if __name__ == "__main__":
    main()
