"""Turn scenes into visual tokens, once, so that pretraining reads a few bytes a picture.

In runs/, where the configs of training look for tokens:

    python -m simplear_train.extract_tokens --world default --tokenizer tokenizer-run/tokenizer.safetensors --out tokens
    torchrun --standalone --nproc-per-node 2 -m simplear_train.extract_tokens ...       the same, in parallel
    python -m simplear_train.extract_tokens --kinds balanced --seed 500 ...             other scenes, for fine-tuning

Writes OUT/train and OUT/validation, folders of token shards (token_shards.py) with several wordings for each scene. The
processes take turns over shards, and a shard already there is kept, so a killed extraction goes on where it was.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from simplear_engine.errors import SimplearError

from .emoji_scenes import KINDS, PRETRAINING_KINDS, SceneMaker
from .image_tokenizer import load_image_tokenizer
from .parallel import ALONE, Share, join_peers
from .sprites import DEFAULT_CACHE
from .token_shards import ShardWriter, begin_set, sha256_of, write_index
from .train_tokenizer import VALIDATION_SEED_OFFSET, to_tensor
from .worlds import WORLDS, World

WORDINGS = 6  # captions kept per scene; pretraining draws one of them each time
SCENES_PER_SHARD = 2048


@torch.no_grad()
def extract(
    world: World, tokenizer_path: Path, out: Path, cache_dir: Path, device: str, share: Share = ALONE,
    kinds: dict[str, float] = PRETRAINING_KINDS,
) -> None:  # fmt: skip
    tokenizer = load_image_tokenizer(tokenizer_path).to(device)
    out.mkdir(parents=True, exist_ok=True)
    origin = {
        "tokenizer": sha256_of(tokenizer_path), "concepts": [c.noun for c in world.concepts], "kinds": kinds,
        "image_side": world.image_side,
    }  # fmt: skip
    splits = {
        "train": (world.seed, world.num_scenes),
        "validation": (world.seed + VALIDATION_SEED_OFFSET, world.num_validation_scenes),
    }
    for split, (seed, num_scenes) in splits.items():
        maker = SceneMaker(seed, world.image_side, cache_dir, world.concepts, kinds)
        if share.is_first:
            begin_set(out / split, {**origin, "seed": seed, "num_scenes": num_scenes})
        if share.world_size > 1:
            dist.barrier()
        num_shards = -(-num_scenes // SCENES_PER_SHARD)
        for number in tqdm(range(share.rank, num_shards, share.world_size), desc=split, disable=not share.is_first):
            if (out / split / f"shard-{number:05d}.safetensors").exists():
                continue
            scenes = range(number * SCENES_PER_SHARD, min((number + 1) * SCENES_PER_SHARD, num_scenes))
            with ShardWriter(out / split, tokenizer.fsq.num_codes, SCENES_PER_SHARD, number, index=False) as writer:
                for begin in range(scenes.start, scenes.stop, 32):
                    batch = range(begin, min(begin + 32, scenes.stop))
                    images = to_tensor([maker.picture(i) for i in batch]).to(device)
                    # bf16 would be faster, but a rounded z near a decision threshold gives another code than the encoder
                    # that ships; float32 keeps training tokens and `encode()` equal.
                    for i, codes in zip(batch, tokenizer.encode(images).cpu().numpy()):
                        writer.add(codes, [maker.scene(i, wording).caption for wording in range(WORDINGS)])
        if share.world_size > 1:
            dist.barrier()
        if share.is_first:
            write_index(out / split, tokenizer.fsq.num_codes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=sorted(WORLDS), default="default")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.safetensors of train_tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--num-scenes", type=int, help="instead of the world's number")
    parser.add_argument("--seed", type=int, help="of the scenes, instead of the world's")
    parser.add_argument("--kinds", choices=list(KINDS), default="pretraining", help="what scenes show")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    world = WORLDS[args.world]
    if args.num_scenes:
        world = replace(world, num_scenes=args.num_scenes)
    if args.seed is not None:
        world = replace(world, seed=args.seed)
    try:
        share = join_peers(args.device)
        extract(world, args.tokenizer, args.out, args.cache_dir, args.device, share, KINDS[args.kinds])
    except SimplearError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
