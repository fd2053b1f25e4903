"""Supervised fine-tuning: next-token training on chosen pictures, from a model that draws already.

In runs/, where the paths of a ready config begin:

    python -m simplear_train.sft --config default-sft --set start=pretrain/model --out sft
    torchrun --standalone --nproc-per-node 8 -m simplear_train.sft --config simplear-0.5b-sft-1024 --out simplear-sft

Writes OUT/{config.toml, log.jsonl, checkpoint.pt, sample-STEP.png} and OUT/model, a folder that the engine serves
(averaged weights where ema_decay is set).
"""

from dataclasses import dataclass, field
from pathlib import Path

from .loop import LoopConfig
from .lora import LoraConfig
from .model_folder import from_folder
from .next_token import DataConfig, LossConfig, NextToken, SampleConfig
from .run import main_of, run_stage


@dataclass(frozen=True)
class SftConfig:
    """start: a model folder, a hub id or "default". image_tokenizer: the folder vq/ to use instead of the start's own."""

    data: DataConfig
    start: str = "default"
    image_tokenizer: str | None = None
    lora: LoraConfig = field(default_factory=LoraConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


def sft(config: SftConfig, out: Path, device: str, resume: bool = False, stop_at: int | None = None) -> Path:
    folder = from_folder(config.start, config.image_tokenizer)
    folder.lora = config.lora
    return run_stage(
        lambda share: NextToken("sft", folder, config.data, config.loss, config.sample, config.loop, out, device, share),
        folder, config, out, device, resume, stop_at,
    )  # fmt: skip


if __name__ == "__main__":
    main_of(SftConfig, sft, __doc__)
