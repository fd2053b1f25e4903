"""Train the towers of emoji_clip.py on scenes and their captions.

    python -m simplear_train.rewards.train_emoji_clip --out runs/reward \\
        --tokenizer simplear_engine/default_model/tokenizer.json \\
        --image-tokenizer simplear_engine/default_model/vq/tokenizer.safetensors

Every picture of a batch must find its caption among all captions of the batch and among four of its own that are
wrong by one fact: another thing, colour, number or direction, or two things that changed places. A third of the
pictures has been through the picture tokenizer, because what is to be judged comes out of it. Scenes keep the hold-outs
of emoji_scenes and come from a stream that no other stage uses. Writes the reward's folder and log.jsonl into OUT;
`told_apart` is the share of captions that beat all their wrong twins.
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
from ..emoji_scenes import BALANCED_KINDS, COUNT_LAYOUTS, Scene, SceneMaker, render
from ..image_tokenizer import ImageTokenizer, load_image_tokenizer
from ..loop import Loop, LoopConfig
from ..parallel import Share, join_peers
from ..precision import multiplies_bfloat16
from ..sprites import DEFAULT_CACHE
from ..worlds import WORLDS
from .emoji_clip import ClipConfig, EmojiClip

SEED = 88_000
WRONG = 4  # captions wrong by one fact, for each picture


def wrong_by_one(scene: Scene, maker: SceneMaker, rng: np.random.Generator) -> Scene:
    """The scene with one fact changed; only its words are used."""
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
        return replace(scene, objects=tuple(objects[:1] * number))
    if change == "places":
        return replace(scene, objects=tuple(objects[::-1]))
    if change == "relation":
        # Even where the words are "a and b": emoji_scenes says that of level pairs only.
        return replace(scene, relation="above" if scene.relation == "left of" else "left of")
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
        return replace(scene, objects=(changed,) * len(objects))
    objects[i] = changed
    return replace(scene, objects=tuple(objects))


class Pairs:
    """Sample `index`: a picture, its caption, and WRONG wrong ones; a function of the maker's seed and the number."""

    def __init__(self, maker: SceneMaker, image_tokenizer: ImageTokenizer | None, device: str):
        self.maker, self.image_tokenizer, self.device = maker, image_tokenizer, device

    def batch(self, indices: range) -> tuple[Tensor, list[str], list[list[str]]]:
        pictures, captions, wrong = [], [], []
        for index in indices:
            rng = np.random.default_rng((self.maker.seed, index, 99))
            wording = int(rng.integers(6))
            scene = self.maker.scene(index, wording)
            pictures.append(render(scene, self.maker.sprites, self.maker.side))
            captions.append(scene.caption)
            # Said from the same seed as the true one, so that only facts tell them apart.
            said = (self.maker.seed, index, 1 + wording)
            wrong.append([self.maker.describe(wrong_by_one(scene, self.maker, rng), said) for _ in range(WRONG)])
        images = torch.from_numpy(np.stack(pictures)).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self._distort(images, indices.start), captions, wrong

    @torch.no_grad()
    def _distort(self, images: Tensor, seed: int) -> Tensor:
        """A third each: as rendered, softened, encoded and decoded; a little noise on all."""
        generator = torch.Generator().manual_seed(seed)
        third = len(images) // 3
        soft = F.interpolate(images[third : 2 * third], scale_factor=0.4, mode="bilinear", antialias=True)
        images[third : 2 * third] = F.interpolate(soft, images.shape[-2:], mode="bilinear")
        if self.image_tokenizer is not None:
            with torch.autocast(
                torch.device(self.device).type, torch.bfloat16, enabled=multiplies_bfloat16(self.device)
            ):
                decoded = self.image_tokenizer(images[2 * third :])
            images[2 * third :] = decoded.float().clamp(-1, 1)
        noise = torch.randn(images.shape, generator=generator).to(self.device)
        strength = torch.rand(len(images), 1, 1, 1, generator=generator).to(self.device) * 0.06
        return (images + noise * strength).clamp(-1, 1)


def contrastive_loss(model: EmojiClip, images: Tensor, captions: list[str], wrong: list[list[str]]):
    """(loss, share of captions that beat their own wrong ones)"""
    number = len(captions)
    pictures = model.image_vectors(images)
    texts = model.text_vectors(captions + [c for own in wrong for c in own])
    scale = model.log_scale.clamp(max=4.6).exp()
    among_all = scale * pictures @ texts[:number].T
    # The same words may describe two scenes of a batch, and a wrong caption may say the truth in other words.
    same = torch.tensor([[a == b and i != j for j, b in enumerate(captions)] for i, a in enumerate(captions)])
    among_all = among_all.masked_fill(same.to(among_all.device), -1e4)
    own = scale * torch.einsum("bd,bwd->bw", pictures, texts[number:].view(number, WRONG, -1))
    said = torch.tensor([[w == c for w in ws] for c, ws in zip(captions, wrong)], device=own.device)
    own = own.masked_fill(said, -1e4)
    target = torch.arange(number, device=among_all.device)
    loss = F.cross_entropy(torch.cat([among_all, own], 1), target) + F.cross_entropy(among_all.T, target)
    right = among_all.diagonal()
    loss = loss + F.cross_entropy(torch.cat([right[:, None], own], 1), torch.zeros_like(target))
    return loss, (right[:, None] > own).all(1).float().mean()


class EmojiClipTraining:
    """The stage of loop.py. Several processes contrast each its own pictures."""

    name = "emoji_clip"

    def __init__(self, model: EmojiClip, pairs: Pairs, batch_size: int, out: Path, share: Share):
        self.model, self.pairs, self.batch_size, self.out, self.share = model, pairs, batch_size, out, share

    def updates(self, step: int):
        yield [self.pairs.batch(self.share.slice(step * self.batch_size, self.batch_size))]

    def loss(self, batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, told_apart = contrastive_loss(self.model, *batch)
        return loss / self.share.world_size, {"told_apart": told_apart / self.share.world_size}

    def report(self) -> dict[str, float]:
        return {}

    def validate(self, step: int) -> dict[str, float]:
        """The share of unseen scenes whose caption beats its wrong twins, a third of them through the tokenizer."""
        unseen = Pairs(replace_seed(self.pairs.maker), self.pairs.image_tokenizer, self.pairs.device)
        batches = [unseen.batch(range(begin, begin + 96)) for begin in range(0, 384, 96)]
        return {"unseen_told_apart": float(np.mean([contrastive_loss(self.model, *b)[1].item() for b in batches]))}

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
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint, if it has one")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
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
