"""Turn SimpleAR's pairs of small files into token shards, or shards into such files.

    python -m simplear_train.import_tokens --files codes/my_data --resolution 512 --num-codes 64000 --out tokens/512
    python -m simplear_train.import_tokens --shards tokens/512 --resolution 512 --out codes/my_data

A damaged file is listed in OUT/rejected.jsonl and counted, and the set has one sample less; the original training code
silently puts another sample in its place.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from simplear_engine.errors import InvalidRequestError, SimplearError

from .rejects import Rejects
from .simplear_files import code_path, read_sample, sample_numbers, write_sample
from .token_shards import ShardWriter, TokenSet


def import_files(files: Path, resolution: int, num_codes: int, out: Path, limit: float = 0.01) -> Rejects:
    if any(out.glob("shard-*.safetensors")):
        raise InvalidRequestError(f"{out}: holds token shards already; choose another folder, or remove them")
    rejects = Rejects(out / "rejected.jsonl", limit)
    with ShardWriter(out, num_codes) as writer:
        for number in tqdm(sample_numbers(files, resolution), desc="samples"):
            try:
                writer.add(*read_sample(files, resolution, number))
            except (OSError, ValueError) as error:
                rejects.reject(str(code_path(files, resolution, number)), error)
            else:
                rejects.accept()
        rejects.check()
    return rejects


def export_files(shards: Path, resolution: int, out: Path) -> int:
    tokens = TokenSet(shards)
    for number in tqdm(range(len(tokens)), desc="samples"):
        write_sample(out, resolution, number, tokens.codes(number), tokens.wordings(number))
    return len(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--files", type=Path, help="folder with RESOLUTION_codes and RESOLUTION_labels")
    source.add_argument("--shards", type=Path, help="folder of token shards")
    parser.add_argument("--resolution", type=int, required=True, help="the number in the folders' names")
    parser.add_argument("--num-codes", type=int, default=64000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-rejected", type=float, default=0.01, help="share of samples that may be damaged")
    args = parser.parse_args()
    try:
        if args.files is not None:
            print(import_files(args.files, args.resolution, args.num_codes, args.out, args.max_rejected))
        else:
            print(f"{export_files(args.shards, args.resolution, args.out)} samples written")
    except SimplearError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
