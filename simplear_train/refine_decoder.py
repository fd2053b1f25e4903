"""Train the tokenizer's decoder further while its encoder, and so every token, stays as it is.

    python -m simplear_train.refine_decoder --preset default --tokenizer runs/tokenizer/tokenizer.safetensors \\
        --tokens runs/tokens --out runs/decoder

Once tokens are extracted the language model can train, and the decoder can go on learning beside it at half the cost of a
full step: its inputs are the extracted codes, its targets are the scenes rendered again from their numbers.
Writes OUT/{checkpoint.pt, log.jsonl, reconstructions.png, tokenizer.safetensors}.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .image_tokenizer import load_image_tokenizer
from .loop import Loop
from .parallel import join_peers
from .presets import PRESETS, Preset
from .sprites import DEFAULT_CACHE
from .token_shards import TokenSet
from .train_tokenizer import Reconstruction, loop_config


class DecoderAlone(Reconstruction):
    """Codes in, pictures out; batches are shuffled, because the scenes come again."""

    def __init__(self, *arguments, tokens: TokenSet, seed: int):
        super().__init__(*arguments)
        self.codes = torch.from_numpy(np.stack([tokens.codes(i) for i in range(len(tokens))]))
        self.seed = seed

    def updates(self, step: int):
        size = self.settings.batch_size
        epoch, number = divmod(step, len(self.codes) // size)
        order = torch.randperm(len(self.codes), generator=torch.Generator().manual_seed(self.seed + epoch))
        yield [order[torch.tensor(self.share.slice(number * size, size))].tolist()]

    def output(self, numbers: list[int], images: Tensor) -> Tensor:
        return self.model.decode(self.codes[numbers].to(self.device))


def refine_decoder(
    preset: Preset, tokenizer_path: Path, tokens: Path, out: Path, cache_dir: Path, device: str, resume: bool
) -> Path:
    settings, share = preset.tokenizer, join_peers(device)
    tokenizer = load_image_tokenizer(tokenizer_path).to(device).train()
    for part in (tokenizer.encoder, tokenizer.quant_conv):
        part.requires_grad_(False)
    stage = DecoderAlone(
        "decoder", tokenizer, preset, out, cache_dir, device, share, tokens=TokenSet(tokens / "train"), seed=preset.seed
    )
    config = loop_config(preset, settings.refine_steps, settings.refine_learning_rate, 1e-5)
    Loop(stage, config, out, device, share).run(resume)
    return out / "tokenizer.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="tokenizer.safetensors whose encoder made the tokens"
    )
    parser.add_argument("--tokens", type=Path, required=True, help="folder of extract_tokens")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="instead of the preset's number")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    if args.steps:
        preset = replace(preset, tokenizer=replace(preset.tokenizer, refine_steps=args.steps))
    print(refine_decoder(preset, args.tokenizer, args.tokens, args.out, args.cache_dir, args.device, args.resume))


if __name__ == "__main__":
    main()
