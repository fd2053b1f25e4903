"""Turn scenes into visual tokens, once, so that pretraining reads a few bytes a picture.

    python -m simplear_train.extract_tokens --preset default --tokenizer runs/tokenizer/tokenizer.safetensors \\
        --out runs/tokens
    torchrun --standalone --nproc-per-node 2 -m simplear_train.extract_tokens ...       the same, in parallel

Each process writes one shard per split, {train,validation}-RANK-of-N.npz: `codes` uint16 or int32 [n, h, w] and
`captions` (JSON as bytes: for each scene a list of wordings). A shard already there is kept, so a killed
extraction goes on where it was.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .emoji_scenes import SceneMaker
from .image_tokenizer import load_image_tokenizer
from .parallel import ALONE, Share, join_peers
from .presets import PRESETS, Preset, concepts_of
from .sprites import DEFAULT_CACHE
from .train_tokenizer import VALIDATION_SEED_OFFSET, to_tensor

WORDINGS = 6  # captions kept per scene; pretraining draws one of them each time


@torch.no_grad()
def extract(
    preset: Preset, tokenizer_path: Path, out: Path, cache_dir: Path, device: str, share: Share = ALONE
) -> None:
    tokenizer = load_image_tokenizer(tokenizer_path).to(device)
    out.mkdir(parents=True, exist_ok=True)
    splits = {
        "train": (preset.seed, preset.pretrain.num_scenes),
        "validation": (preset.seed + VALIDATION_SEED_OFFSET, preset.pretrain.num_validation_scenes),
    }
    for split, (seed, num_scenes) in splits.items():
        path = out / f"{split}-{share.rank}-of-{share.world_size}.npz"
        if path.exists():
            continue
        maker = SceneMaker(seed, preset.tokenizer.image_side, cache_dir, concepts_of(preset))
        numbers = share.slice(0, num_scenes)
        codes, captions = [], []
        for begin in tqdm(
            range(numbers.start, numbers.stop, 32), desc=split, disable=not share.is_first, mininterval=5
        ):
            batch = range(begin, min(begin + 32, numbers.stop))
            images = to_tensor([maker.picture(i) for i in batch]).to(device)
            # bf16 would be faster, but a rounded z near a decision threshold gives another code than the encoder
            # that ships; float32 keeps training tokens and `encode()` equal.
            codes.append(tokenizer.encode(images).cpu().numpy())
            captions += [[maker.scene(i, wording).caption for wording in range(WORDINGS)] for i in batch]
        temporary = path.with_suffix(".tmp.npz")
        dtype = np.uint16 if tokenizer.fsq.num_codes <= 2**16 else np.int32
        words = np.frombuffer(json.dumps(captions).encode(), np.uint8)
        np.savez_compressed(temporary, codes=np.concatenate(codes).astype(dtype), captions=words)
        temporary.replace(path)


def read_tokens(folder: Path, split: str) -> tuple[np.ndarray, list[list[str]]]:
    """(codes int64 [n, h*w], captions) of all shards of a split, in scene order."""
    codes, captions = [], []
    for path in sorted(folder.glob(f"{split}-*-of-*.npz"), key=lambda p: int(p.name.split("-")[1])):
        if path.name.endswith(".tmp.npz"):
            continue
        with np.load(path) as shard:
            codes.append(shard["codes"].reshape(len(shard["codes"]), -1).astype(np.int64))
            captions += json.loads(shard["captions"].tobytes())
    if not codes:
        raise FileNotFoundError(f"{folder}: no {split}-*-of-*.npz shards, run simplear_train.extract_tokens first")
    return np.concatenate(codes), captions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.safetensors of train_tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--num-scenes", type=int, help="instead of the preset's number")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    if args.num_scenes:
        preset = replace(preset, pretrain=replace(preset.pretrain, num_scenes=args.num_scenes))
    extract(preset, args.tokenizer, args.out, args.cache_dir, args.device, join_peers(args.device))


if __name__ == "__main__":
    main()
