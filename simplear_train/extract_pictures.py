"""Turn pictures of any size into visual tokens with a checkpoint's own image tokenizer.

    python -m simplear_train.extract_pictures --list data.json --tokenizer MODEL/vq --size 512 --out tokens/512
    python -m simplear_train.extract_pictures --list data.yaml --tokenizer MODEL/vq --size 1024 --out codes --layout simplear
    torchrun --standalone --nproc-per-node 8 -m simplear_train.extract_pictures ...

The list is SimpleAR's (simplear_files.py). A picture is halved with a box filter while its short side is at least twice the
size, scaled (bicubic) until the short side fits, and cropped in the middle. Writes token shards, which is what
training reads, or SimpleAR's files. Pictures that cannot be read are listed in OUT/rejected-RANK.jsonl and counted. What is
there already is kept, so a killed extraction goes on where it was; codes of another list or tokenizer are refused.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch.distributed as dist
from tqdm import tqdm

from simplear_engine.errors import CheckpointError, InvalidRequestError, SimplearError
from simplear_engine.image import CosmosTokenizer
from simplear_engine.image.source import FILE_NAME

from .parallel import Share, join_peers
from .rejects import Rejects
from .simplear_files import code_path, read_list, write_sample
from .token_shards import ShardWriter, begin_set, sha256_of, write_index

SAMPLES_PER_SHARD = 2048


def load_picture(path: str, size: int) -> np.ndarray:
    """float32 [3, size, size] in [-1, 1]"""
    from PIL import Image

    with Image.open(path) as file:
        image = file.convert("RGB")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32)
    return np.ascontiguousarray((pixels / 127.5 - 1).transpose(2, 0, 1))


def extract(
    entries: list[dict], tokenizer: CosmosTokenizer, encoder: str, size: int, out: Path, layout: str, limit: float,
    share: Share,
) -> Rejects:  # fmt: skip
    """`encoder`: the SHA-256 of the tokenizer's file, so that no set holds codes of two."""
    if size < 1 or size % tokenizer.compression:
        raise InvalidRequestError(f"--size: expected a multiple of {tokenizer.compression}, got {size}")
    rejects = Rejects(out / f"rejected-{share.rank}.jsonl", limit)
    listed = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    origin = {"encoder": encoder, "entries": listed, "size": size, "num_codes": tokenizer.num_codes}
    if share.is_first and layout == "shards":
        begin_set(out, origin)
    elif share.is_first:  # a folder of this layout has pictures of several sizes
        begin_set(out, origin, f"{size}_origin.json", f"{size}_codes/*.npy")
    if share.world_size > 1:
        dist.barrier()
    num_blocks = -(-len(entries) // SAMPLES_PER_SHARD)
    for block in tqdm(range(share.rank, num_blocks, share.world_size), desc="shards", disable=not share.is_first):
        numbers = range(block * SAMPLES_PER_SHARD, min((block + 1) * SAMPLES_PER_SHARD, len(entries)))
        if layout == "simplear":
            for i in numbers:
                if code_path(out, size, i).exists():
                    rejects.accept()
                    continue
                codes = _encode(entries[i], tokenizer, size, rejects)
                if codes is not None:
                    write_sample(out, size, i, codes, entries[i]["caption"])
        elif not (out / f"shard-{block:05d}.safetensors").exists():
            with ShardWriter(out, tokenizer.num_codes, SAMPLES_PER_SHARD, block, index=False) as writer:
                for i in tqdm(numbers, desc=f"shard {block}", leave=False, disable=not share.is_first):
                    codes = _encode(entries[i], tokenizer, size, rejects)
                    if codes is not None:
                        writer.add(codes, entries[i]["caption"])
    rejects.check()
    if share.world_size > 1:
        dist.barrier()
    if share.is_first and layout == "shards":
        write_index(out, tokenizer.num_codes)
    return rejects


def _encode(entry: dict, tokenizer: CosmosTokenizer, size: int, rejects: Rejects) -> np.ndarray | None:
    try:
        picture = load_picture(entry["image_path"], size)
    # Whatever Pillow's readers make of a damaged file, or of one that says it is a hundred times as large as it is.
    except Exception as error:
        rejects.reject(entry["image_path"], error)
        return None
    rejects.accept()
    return tokenizer.encode(picture[None])[0]


def encoder_sha256(path: Path) -> str:
    """Of the file that holds the encoder of the tokenizer at `path`."""
    files = [path / FILE_NAME, path / "encoder.jit"] if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            return sha256_of(file)
    raise CheckpointError(f"{path}: expected {' or '.join(file.name for file in files)}, found neither")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", required=True, help="SimpleAR's list: .json, /data/{a,b}.json or .yaml")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder or file with the encoder")
    parser.add_argument("--size", type=int, required=True, help="side in pixels, a multiple of the compression")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layout", choices=("shards", "simplear"), default="shards")
    parser.add_argument("--max-rejected", type=float, default=0.01, help="share of pictures that may be unreadable")
    args = parser.parse_args()
    try:
        tokenizer = CosmosTokenizer.from_pretrained(args.tokenizer)
        args.out.mkdir(parents=True, exist_ok=True)
        entries = read_list(args.list)
        encoder, share = encoder_sha256(args.tokenizer), join_peers("cpu")
        print(extract(entries, tokenizer, encoder, args.size, args.out, args.layout, args.max_rejected, share))
    except SimplearError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
