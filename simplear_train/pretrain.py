"""Next-token pretraining, from random weights or from a text model: caption in, visual tokens out.

In runs/, where the paths of a ready config begin:

    python -m simplear_train.pretrain --config default-pretrain --out pretrain
    python -m simplear_train.pretrain --config my.toml --set loop.steps=500 --out mine --resume
    torchrun --standalone --nproc-per-node 8 -m simplear_train.pretrain --config simplear-0.5b-pretrain-512 \\
        --out simplear-0.5b-pretrain-512

Writes OUT/{config.toml, log.jsonl, checkpoint.pt, sample-STEP.png} and OUT/model, a folder that the engine serves
(averaged weights where ema_decay is set).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer

from simplear_engine.atomic_file import atomic_writer
from simplear_engine.checkpoint import resolve
from simplear_engine.config import DEFAULTS_FILE, GenerationDefaults, ModelConfig
from simplear_engine.errors import InvalidRequestError

from .config_file import COUNT, NOT_NEGATIVE, POSITIVE, check_values
from .loop import CHECKPOINT, LoopConfig
from .model_folder import ModelFolder, from_folder, from_qwen, from_scratch, image_tokenizer_folder
from .next_token import DataConfig, LossConfig, NextToken, SampleConfig
from .run import main_of, run_stage
from .text_tokenizer import train_text_tokenizer
from .token_shards import TokenSet


def multiple_of(number: int, name: str):
    return f"a multiple of {name} = {number}", lambda value: value > 0 and value % number == 0


@dataclass(frozen=True)
class ScratchConfig:
    """A network of one's own, a Qwen2 decoder, and a text tokenizer trained on the captions of the first source."""

    text_vocab_size: int = 752
    hidden_size: int = 256
    intermediate_size: int = 448
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    rope_theta: float = 10000.0
    max_position_embeddings: int = 1024

    def __post_init__(self):
        check_values(
            self, "start.scratch", text_vocab_size=("at least the 256 bytes", lambda value: value >= 256),
            num_layers=COUNT, num_kv_heads=COUNT, intermediate_size=COUNT, rope_theta=POSITIVE,
            max_position_embeddings=COUNT,
            num_heads=multiple_of(self.num_kv_heads, "num_kv_heads"),
            hidden_size=multiple_of(2 * self.num_heads, "2 x num_heads"),
        )  # fmt: skip


@dataclass(frozen=True)
class StartConfig:
    """kind "scratch" needs the table [start.scratch], "qwen" the folder of a Qwen2.5 text model, "model" a folder that
    draws already. image_tokenizer: a folder vq/ to take along, instead of the start's own. The rest goes to simplear.json
    unless the start has one: how the folder likes to be asked, nothing of which training reads."""

    kind: Literal["scratch", "qwen", "model"] = "scratch"
    folder: str | None = None
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    image_tokenizer: str | None = None
    prompt_prefix: str = ""
    negative_prompt: str = ""
    guidance_scale: float = 1.4
    top_k: int | None = None

    def __post_init__(self):
        check_values(self, "start", guidance_scale=NOT_NEGATIVE, top_k=COUNT)


@dataclass(frozen=True)
class PretrainConfig:
    data: DataConfig
    start: StartConfig = field(default_factory=StartConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


def scratch_tokenizer(sizes: ScratchConfig, tokens: TokenSet, out: Path) -> Tokenizer:
    """Trained once for a run, which begins with its first checkpoint: captions that come later must not change what a
    text id means."""
    path = out / "tokenizer.json"
    if not (path.exists() and (out / CHECKPOINT).exists()):
        captions = (tokens.wordings(i)[0] for i in range(len(tokens)))
        out.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            file.write(train_text_tokenizer(captions, sizes.text_vocab_size).to_str().encode())
    return Tokenizer.from_file(str(path))


def start_from(config: StartConfig, tokens: TokenSet, out: Path) -> ModelFolder:
    if config.kind != "scratch" and config.folder is None:
        raise InvalidRequestError(f"start.folder: expected a folder where start.kind is {config.kind!r}, found nothing")
    height, width = tokens.shards[0].grid
    defaults = GenerationDefaults(
        prompt_prefix=config.prompt_prefix, negative_prompt=config.negative_prompt,
        guidance_scale=config.guidance_scale, top_k=config.top_k, height=16 * height, width=16 * width,
    )  # fmt: skip
    if config.kind == "model":
        folder = from_folder(config.folder, config.image_tokenizer)
        if not (resolve(config.folder) / DEFAULTS_FILE).exists():
            folder.defaults = defaults
        return folder
    vq = image_tokenizer_folder(config.image_tokenizer)
    if config.kind == "qwen":
        folder = from_qwen(config.folder, tokens.num_codes, defaults)
        folder.image_tokenizer = vq
        return folder
    sizes = config.scratch
    tokenizer = scratch_tokenizer(sizes, tokens, out)
    offset = tokenizer.get_vocab_size()
    model = ModelConfig(
        hidden_size=sizes.hidden_size, intermediate_size=sizes.intermediate_size, num_layers=sizes.num_layers,
        num_heads=sizes.num_heads, num_kv_heads=sizes.num_kv_heads, head_dim=sizes.hidden_size // sizes.num_heads,
        rope_theta=sizes.rope_theta, rms_norm_eps=1e-6, vocab_size=offset + tokens.num_codes, tie_word_embeddings=True,
        max_position_embeddings=sizes.max_position_embeddings, visual_offset=offset,
    )  # fmt: skip
    return from_scratch(model, tokenizer, defaults, vq)


def pretrain(config: PretrainConfig, out: Path, device: str, resume: bool = False, stop_at: int | None = None) -> Path:
    torch.manual_seed(config.loop.seed)
    folder = start_from(config.start, TokenSet(Path(config.data.sources[0].folder), verify=False), out)
    return run_stage(
        lambda share: NextToken("pretrain", folder, config.data, config.loss, config.sample, config.loop, out, device, share),
        folder, config, out, device, resume, stop_at,
    )  # fmt: skip


if __name__ == "__main__":
    main_of(PretrainConfig, pretrain, __doc__)
