"""Train the tokenizer's decoder further while its encoder, and so every token, stays as it is.

In runs/, where the paths of a ready config begin:

    python -m simplear_train.refine_decoder --config default-decoder --out decoder-run

Once tokens are extracted the language model can train, and the decoder can go on learning beside it at half the cost of a
full step: its inputs are the extracted codes, its targets are the scenes rendered again from their numbers.
Writes OUT/{config.toml, log.jsonl, checkpoint.pt, reconstructions.png, tokenizer.safetensors}.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from simplear_engine.errors import InvalidRequestError

from .config_file import COUNT, check_values
from .image_tokenizer import load_image_tokenizer
from .loop import LoopConfig
from .parallel import join_peers
from .run import main_of, run_loop
from .sprites import DEFAULT_CACHE
from .token_shards import TokenSet
from .train_tokenizer import Reconstruction, ReconstructionConfig


@dataclass(frozen=True)
class DecoderConfig:
    """tokenizer: the file whose encoder made the tokens; tokens: shards of the world's first scenes, in their order."""

    tokenizer: str
    tokens: str
    world: Literal["default", "smoke"] = "default"
    batch_size: int = 16
    loss: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self):
        check_values(self, "", batch_size=COUNT)


class DecoderAlone(Reconstruction):
    """Codes in, pictures out; batches are shuffled, because the scenes come again."""

    def __init__(self, *arguments, tokens: TokenSet):
        super().__init__(*arguments)
        if len(tokens) < self.config.batch_size:
            raise InvalidRequestError(
                f"batch_size: expected at most the {len(tokens)} pictures of {self.config.tokens}"
            )
        self.codes = torch.from_numpy(np.stack([tokens.codes(i) for i in range(len(tokens))]))

    def updates(self, step: int):
        size = self.config.batch_size
        epoch, number = divmod(step, len(self.codes) // size)
        order = torch.randperm(len(self.codes), generator=torch.Generator().manual_seed(self.config.loop.seed + epoch))
        yield [order[torch.tensor(self.share.slice(number * size, size))].tolist()]

    def output(self, numbers: list[int], images: Tensor) -> Tensor:
        return self.model.decode(self.codes[numbers].to(self.device))


def refine_decoder(
    config: DecoderConfig, out: Path, device: str, resume: bool = False, stop_at: int | None = None,
    cache_dir: Path = DEFAULT_CACHE,
) -> Path:  # fmt: skip
    share = join_peers(device)
    tokenizer = load_image_tokenizer(Path(config.tokenizer)).to(device).train()
    for part in (tokenizer.encoder, tokenizer.quant_conv):
        part.requires_grad_(False)
    tokens = TokenSet(Path(config.tokens))
    stage = DecoderAlone("decoder", tokenizer, config, out, cache_dir, device, share, tokens=tokens)
    run_loop(stage, config, out, device, share, resume, stop_at)
    return out / "tokenizer.safetensors"


if __name__ == "__main__":
    main_of(DecoderConfig, refine_decoder, __doc__)
