"""Next-token training, for pretraining and fine-tuning alike: caption in, visual tokens out.

Loss over "visual" rows: cross entropy of each visual token over the visual rows (the only ones a sampler may draw) plus
`text_weight` times the captions' own over the text rows. Loss over "all" rows is SimpleAR's: one mean over text and
visual tokens, each scored against the whole table. Both are means over the step's whole batch, whatever it was
cut into.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from simplear_engine.config import ModelConfig
from simplear_engine.errors import InvalidRequestError
from simplear_engine.image.source import open_tokenizer

from .config_file import COUNT, NOT_NEGATIVE, check_values
from .live_engine import LiveEngine, draw_sheet
from .log_probs import token_log_probs
from .loop import LoopConfig
from .model_folder import ModelFolder
from .parallel import ALONE, Share
from .precision import resolved
from .sequences import (
    TEXT,
    VISUAL,
    Batch,
    CaptionConfig,
    Captioner,
    Sequence,
    SequenceData,
    Source,
    lay_out,
    micro_batches,
)
from .token_shards import TokenSet


@dataclass(frozen=True)
class SourceConfig:
    """One [[data.sources]] table. folder: token shards; sampling: all, first:N, end:N, random:N (N may be "10%"),
    repeat:N."""

    folder: str
    sampling: str = "all"


@dataclass(frozen=True)
class DataConfig:
    """batch_size: samples of an optimizer step, over all processes; micro_batch_size: samples of one forward pass of one
    process; pack_length: tokens of a row that several samples share, 0 for a row each."""

    sources: tuple[SourceConfig, ...]
    validation: str | None = None
    batch_size: int = 32
    micro_batch_size: int = 32
    pack_length: int = 0
    verify_checksums: bool = True
    captions: CaptionConfig = field(default_factory=CaptionConfig)

    def __post_init__(self):
        check_values(
            self, "data", sources=("at least one table [[data.sources]]", len), batch_size=COUNT,
            micro_batch_size=COUNT, pack_length=NOT_NEGATIVE,
        )  # fmt: skip


@dataclass(frozen=True)
class LossConfig:
    rows: Literal["visual", "all"] = "visual"
    text_weight: float = 0.05

    def __post_init__(self):
        check_values(self, "loss", text_weight=NOT_NEGATIVE)


@dataclass(frozen=True)
class SampleConfig:
    """Pictures drawn while training, one for each prompt; no prompts, no pictures."""

    prompts: tuple[str, ...] = ()
    guidance_scale: float | None = None

    def __post_init__(self):
        check_values(self, "sample", guidance_scale=NOT_NEGATIVE)


def visual_head(batch: Batch, offset: int, rows: str):
    """The function of (final states, table) that gives the log-probability of every visual and of every text token."""
    targets, kind = batch.ids[:, 1:], batch.kind[:, 1:]

    def head(hidden: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        hidden = hidden[:, :-1]  # the state at position p predicts token p + 1
        visual, text = kind == VISUAL, kind == TEXT
        if rows == "all":
            return (
                token_log_probs(hidden[visual], table, targets[visual]),
                token_log_probs(hidden[text], table, targets[text]),
            )
        return (
            token_log_probs(hidden[visual], table[offset:], targets[visual] - offset),
            token_log_probs(hidden[text], table[:offset], targets[text]),
        )

    return head


def token_set(folder: str, config: DataConfig, num_codes: int) -> TokenSet:
    tokens = TokenSet(Path(folder), config.verify_checksums)
    if tokens.num_codes != num_codes:
        raise InvalidRequestError(
            f"{folder}: {tokens.num_codes} codes, but the model draws {num_codes}: another image tokenizer"
        )
    return tokens


def source_data(config: DataConfig, captioner: Captioner, model: ModelConfig, seed: int) -> SequenceData:
    sources = []
    for entry in config.sources:
        source = Source.select(token_set(entry.folder, config, model.num_codes), entry.sampling, seed)
        source.check_lengths(captioner, model.max_position_embeddings)
        sources.append(source)
    return SequenceData(sources, captioner, model.visual_offset, config.batch_size, seed)


class NextToken:
    """The stage of loop.py for pretraining and fine-tuning; `name` is what the progress bar calls it."""

    def __init__(
        self, name: str, folder: ModelFolder, data: DataConfig, loss: LossConfig, sample: SampleConfig, loop: LoopConfig,
        out: Path, device: str, share: Share = ALONE,
    ):  # fmt: skip
        self.name, self.folder, self.model = name, folder, folder.model
        self.out, self.device, self.share = out, device, share
        self.config, self.loss_config, self.sample = data, loss, sample
        self.offset, num_codes = folder.model.config.visual_offset, folder.model.config.num_codes
        captioner = Captioner(folder.text, folder.defaults, data.captions)
        self.data = source_data(data, captioner, folder.model.config, loop.seed)
        self.captioner = captioner
        self.held_back = token_set(data.validation, data, num_codes) if data.validation else None
        # What validation, or an engine on the model, would find out too late: before the first checkpoint.
        if folder.image_tokenizer is not None:
            held = open_tokenizer(folder.image_tokenizer).config.num_codes
            if held != num_codes:
                raise InvalidRequestError(
                    f"{folder.image_tokenizer}: {held} codes, but the model draws {num_codes}: another image tokenizer"
                )
        if sample.prompts and folder.image_tokenizer is None:
            raise InvalidRequestError("sample.prompts: a model without an image tokenizer (vq/) draws no pictures")
        if data.batch_size < share.world_size or (loop.sharding == "fsdp2" and data.batch_size % share.world_size):
            expected = (
                f"a multiple of {share.world_size}" if loop.sharding == "fsdp2" else f"at least {share.world_size}"
            )
            raise InvalidRequestError(
                f"data.batch_size: expected {expected}, so that {share.world_size} processes work in step, "
                f"got {data.batch_size}"
            )
        self.engine: LiveEngine | None = None
        self.compute_dtype = resolved(loop.compute_dtype, device)

    def updates(self, step: int):
        mine, whole = self.data.batch(step, self.share)
        num_visual = sum(len(s.codes) for s in whole)
        num_text = sum(len(s.prompt) - 1 for s in whole)
        yield [
            (batch.to(self.device), num_visual, num_text)
            for batch in micro_batches(mine, self.config.micro_batch_size, self.offset, self.config.pack_length)
        ]

    def loss(self, micro_batch: tuple[Batch, int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        batch, num_visual, num_text = micro_batch
        visual, text = self.model(batch.ids, batch.segments, visual_head(batch, self.offset, self.loss_config.rows))
        visual_loss, text_loss = -visual.sum() / num_visual, -text.sum() / num_text
        if self.loss_config.rows == "all":
            loss = -(visual.sum() + text.sum()) / (num_visual + num_text)
        else:
            loss = visual_loss + self.loss_config.text_weight * text_loss
        return loss, {"visual_loss": visual_loss, "text_loss": text_loss}

    def report(self) -> dict[str, float]:
        return {}

    def validate(self, step: int) -> dict[str, float]:
        """Nats per visual token of held-back pictures, with their first wording and without words; a sheet of pictures."""
        results = {}
        if self.held_back is not None:
            for name, has_words in (("validation", True), ("validation_unconditional", False)):
                results[name] = self._held_back_loss(has_words)
        if self.sample.prompts:
            if self.engine is None:
                self.engine = LiveEngine(self.folder, self.compute_dtype)
            self.engine.refresh()
            if self.share.is_first:
                draw_sheet(
                    self.engine.engine, self.sample.prompts, self.sample.guidance_scale, self.out / f"sample-{step}.png"
                )
        return results

    def _held_back_sequences(self, has_words: bool):
        """Batches of held-back pictures with their first wording. Every process computes all of them: sharded parameters
        need everybody, and the sum is the same for any number."""
        size = self.config.micro_batch_size
        for begin in range(0, len(self.held_back), size):
            yield [
                Sequence(
                    self.captioner.wrap(self.held_back.wordings(i)[0] if has_words else ""),
                    self.held_back.codes(i).reshape(-1),
                )
                for i in range(begin, min(begin + size, len(self.held_back)))
            ]

    def _held_back_loss(self, has_words: bool) -> float:
        total, count = 0.0, 0
        for sequences in self._held_back_sequences(has_words):
            batch = lay_out([[s] for s in sequences], self.offset).to(self.device)
            visual, _ = self.model(batch.ids, None, visual_head(batch, self.offset, self.loss_config.rows))
            total, count = total - visual.sum().item(), count + len(visual)
        return total / count

    def export(self, weights: dict[str, Tensor]) -> None:
        self.folder.save(self.out / "model", torch.bfloat16, weights)
