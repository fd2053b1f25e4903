"""The text side: a small byte-level BPE trained on captions, with SimpleAR's seven control tokens behind it.

    python -m simplear_train.text_tokenizer --world default --out tokenizer.json

The pipeline (NFC, Qwen2's word pattern, bytes) is that of Qwen2, only the merges are our own, so whatever reads the
tokenizer of a published checkpoint reads this one. The control tokens come last and in SimpleAR's order; the number
of all entries is the offset of visual code 0. Any text can be encoded: bytes are the smallest pieces.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CONTROL_TOKENS = ("<|t2i|>", "<|i2t|>", "<|soi|>", "<|vtokens|>", "<|t2v|>", "<|v2t|>", "<|sov|>")
BEGIN, END = "<|t2i|>", "<|soi|>"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_text_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """`vocab_size` counts bytes and merges; the control tokens come on top."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    return tokenizer


def main() -> None:
    from .emoji_scenes import SceneMaker
    from .sprites import DEFAULT_CACHE
    from .worlds import WORLDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=sorted(WORLDS), default="default")
    parser.add_argument("--vocab-size", type=int, default=752, help="bytes and merges, control tokens not counted")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    world = WORLDS[args.world]
    maker = SceneMaker(world.seed, world.image_side, args.cache_dir, world.concepts)
    captions = (maker.scene(i).caption for i in range(20_000))
    tokenizer = train_text_tokenizer(captions, args.vocab_size)
    tokenizer.save(str(args.out))
    print(f"{args.out}: {tokenizer.get_vocab_size()} entries")


if __name__ == "__main__":
    main()
