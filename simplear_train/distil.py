"""Guidance distillation: a model learns to draw without guidance what it draws with it, for half the work a picture.

In runs/, where the paths of a ready config begin:

    python -m simplear_train.distil --config default-distil --out distil

Guidance computes every code twice, with the prompt and without. The teacher is the model that the run starts from, drawn as
`teacher` says; the student sees the prompt alone and learns the teacher's whole distribution at every code of the
training pictures, which says far more than the one code that stands there: minutes are enough.

    loss = mean over visual tokens of  KL(teacher || student),   teacher = softmax of the top_k of  u + s (c - u)

The model folder that it writes asks for no guidance. Source: Meng et al. 2023, "On Distillation of Guided Diffusion Models",
whose idea needs no diffusion.
"""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from simplear_engine.errors import InvalidRequestError

from .config_file import NOT_NEGATIVE, check_values
from .log_probs import CHUNK_LOGITS
from .loop import LoopConfig, without_dropout
from .lora import LoraConfig
from .model import Qwen2Model
from .model_folder import ModelFolder, from_folder
from .next_token import DataConfig, LossConfig, NextToken, SampleConfig
from .parallel import Share
from .run import main_of, run_stage
from .sequences import VISUAL, Batch, Sequence, lay_out, micro_batches


@dataclass(frozen=True)
class TeacherConfig:
    """How the teacher draws. top_k 0: all codes."""

    guidance_scale: float = 1.4
    top_k: int = 0

    def __post_init__(self):
        check_values(self, "teacher", guidance_scale=NOT_NEGATIVE, top_k=NOT_NEGATIVE)


@dataclass(frozen=True)
class DistilConfig:
    """start: a model folder, a hub id or "default", which is the teacher, too."""

    data: DataConfig
    start: str = "default"
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


def kl_to_teacher(hidden: Tensor, table: Tensor, taught: Tensor, taught_table: Tensor, top_k: int = 0) -> Tensor:
    """Sum over rows of KL(teacher || student) over codes: final states hidden, taught [N, D], tables [V, D].

    A gradient goes to `hidden` and `table`. Logits stand in memory for a chunk of rows at a time.
    """

    def of_chunk(hidden: Tensor, table: Tensor, taught: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = (taught @ taught_table.T).float()
            if 0 < top_k < len(taught_table):
                wanted.masked_fill_(wanted < wanted.topk(top_k, dim=-1).values[:, -1:], -torch.inf)
            wanted = wanted.softmax(-1)
        told = (hidden @ table.T).float().log_softmax(-1)
        return F.kl_div(told, wanted, reduction="sum")

    rows = max(1, CHUNK_LOGITS // len(table))
    parts = [slice(begin, begin + rows) for begin in range(0, len(hidden), rows)]
    return torch.stack([
        checkpoint(of_chunk, hidden[part], table, taught[part], use_reentrant=False) for part in parts
    ]).sum()  # fmt: skip


def visual_states(batch: Batch):
    """The function of (final states, table) that gives the states which predict visual tokens [N, D], and the table."""
    kind = batch.kind[:, 1:]
    return lambda hidden, table: (hidden[:, :-1][kind == VISUAL], table)


class Distillation(NextToken):
    """The stage of loop.py. validation_kl is the loss on held-back pictures, beside what next-token training reports."""

    def __init__(
        self, folder: ModelFolder, teacher: Qwen2Model, config: DistilConfig, out: Path, device: str, share: Share
    ):
        if config.data.pack_length:
            raise InvalidRequestError(f"data.pack_length: expected 0 for distillation, got {config.data.pack_length}")
        super().__init__(
            "distil", folder, config.data, LossConfig(), config.sample, config.loop, out, device, share
        )  # fmt: skip
        self.teacher, self.told = teacher.to(device).requires_grad_(False), config.teacher
        self.negative_ids = tuple(folder.text.encode_negative(folder.defaults.negative_prompt, folder.defaults))

    def updates(self, step: int):
        mine, whole = self.data.batch(step, self.share)
        num_visual = sum(len(s.codes) for s in whole)
        with_words, without = (
            micro_batches(s, self.config.micro_batch_size, self.offset) for s in (mine, self._wordless(mine))
        )
        yield [(a.to(self.device), b.to(self.device), num_visual) for a, b in zip(with_words, without, strict=True)]

    def loss(self, micro_batch: tuple[Batch, Batch, int]) -> tuple[Tensor, dict[str, Tensor]]:
        with_words, without, num_visual = micro_batch
        divergence = self._divergence(with_words, without) / num_visual
        return divergence, {"kl": divergence}

    def validate(self, step: int) -> dict[str, float]:
        results = super().validate(step)
        if self.held_back is not None:
            total, count = 0.0, 0
            for sequences in self._held_back_sequences(has_words=True):
                batches = [lay_out([[s] for s in each], self.offset) for each in (sequences, self._wordless(sequences))]
                total += self._divergence(*(batch.to(self.device) for batch in batches)).item()
                count += sum(len(s.codes) for s in sequences)
            results["validation_kl"] = total / count
        return results

    def _wordless(self, sequences: list[Sequence]) -> list[Sequence]:
        return [Sequence(self.negative_ids, s.codes) for s in sequences]

    def _divergence(self, with_words: Batch, without: Batch) -> Tensor:
        """Sum over visual tokens."""
        with torch.no_grad(), without_dropout(self.teacher):
            conditional, taught_table = self.teacher(with_words.ids, None, visual_states(with_words))
            unconditional, _ = self.teacher(without.ids, None, visual_states(without))
            # The head is linear, so mixed states give mixed logits.
            taught = unconditional + self.told.guidance_scale * (conditional - unconditional)

        def head(hidden: Tensor, table: Tensor) -> Tensor:
            states, _ = visual_states(with_words)(hidden, table)
            return kl_to_teacher(
                states, table[self.offset :], taught, taught_table[self.offset :], self.told.top_k
            )  # fmt: skip

        return self.model(with_words.ids, None, head)


def distil(config: DistilConfig, out: Path, device: str, resume: bool = False, stop_at: int | None = None) -> Path:
    if config.loop.sharding != "none":
        raise InvalidRequestError(f'loop.sharding: expected "none" for distillation, got "{config.loop.sharding}"')
    folder = from_folder(config.start)
    teacher = copy.deepcopy(folder.model)
    folder.lora = config.lora
    folder.defaults = replace(folder.defaults, guidance_scale=1.0)
    return run_stage(
        lambda share: Distillation(folder, teacher, config, out, device, share),
        folder, config, out, device, resume, stop_at,
    )  # fmt: skip


if __name__ == "__main__":
    main_of(DistilConfig, distil, __doc__)
