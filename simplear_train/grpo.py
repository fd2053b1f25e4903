"""Reinforcement by groups (GRPO): the engine draws G pictures of each prompt, a reward compares them.

In runs/, where the paths of a ready config begin:

    python -m simplear_train.grpo --config default-grpo --out grpo
    torchrun --standalone --nproc-per-node 7 -m simplear_train.grpo --config simplear-0.5b-grpo-1024 --out simplear-grpo

One step: an engine on the live parameters draws, its own decoder makes pixels, rewards judge them, and the trainer
scores the same tokens with the same parameters. Each process draws, decodes and judges its own prompts; nothing but
counts, metrics and gradients goes between processes.

Which distribution is trained is the config's to say. `rollout` is what the engine draws from (guidance, temperature, top-k);
`objective_guidance` is the guidance of the distribution whose log-probabilities the loss uses, at the rollout's
temperature and top-k. Equal, the step is on-policy and the logged mismatch |log p_engine - log p_trainer| is rounding.
With objective_guidance 1 under guided rollouts the conditional model alone is trained, as others do; then the mismatch
is mostly guidance, and the truncated importance weight is a real correction.

Writes OUT/{config.toml, log.jsonl, checkpoint.pt, sample-STEP.png} and OUT/model. Log keys: reward, reward_std,
reward/NAME, rewards_nan, reward_failures, groups_without_signal, diversity, kl, clip_ratio, entropy, mismatch, and seconds of
rollout, decode, reward and train.
"""

import copy
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simplear_engine.errors import InvalidRequestError

from .config_file import COUNT, NOT_NEGATIVE, check_values
from .grpo_objective import ObjectiveConfig, group_advantages, grpo_loss
from .live_engine import draw_sheet
from .log_probs import token_log_probs
from .loop import LoopConfig, autocast, compute_dtype, without_dropout
from .lora import LoraConfig
from .model import Qwen2Model
from .model_folder import ModelFolder, from_folder
from .next_token import SampleConfig
from .parallel import ALONE, Share, combine, shard
from .precision import resolved
from .rewards import RewardConfig, Scores, WeightedRewards
from .rollout import PromptStream, Roller, Rollout, RolloutConfig, read_prompts
from .run import main_of, run_stage
from .sequences import VISUAL, Sequence, lay_out

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GrpoConfig:
    """start: a model folder, a hub id or "default". image_tokenizer: the folder vq/ to use instead of the start's own.
    updates: optimizer steps on one rollout. micro_batch_size: pictures of one forward pass of one process."""

    rollout: RolloutConfig
    rewards: tuple[RewardConfig, ...]
    start: str = "default"
    image_tokenizer: str | None = None
    lora: LoraConfig = field(default_factory=LoraConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    objective_guidance: float = 1.0
    updates: int = 1
    micro_batch_size: int = 32
    max_reward_failures: int = 3
    sample: SampleConfig = field(default_factory=SampleConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self):
        check_values(
            self, "", updates=COUNT, micro_batch_size=COUNT, max_reward_failures=COUNT, objective_guidance=NOT_NEGATIVE
        )


@dataclass
class MicroBatch:
    prompt_ids: list[tuple[int, ...]]
    codes: np.ndarray
    drawn: Tensor
    advantages: Tensor
    counts: Tensor  # bool [B]
    num_sequences: int
    old: Tensor | None = None


class Grpo:
    """The stage of loop.py."""

    name = "grpo"

    def __init__(
        self, folder: ModelFolder, reference: Qwen2Model | None, config: GrpoConfig, out: Path, device: str,
        share: Share = ALONE,
    ):  # fmt: skip
        """`reference`: the weights that the run starts from, which the KL term holds on to; None where beta is 0."""
        rollout = config.rollout
        if rollout.prompts_per_step % share.world_size:
            raise InvalidRequestError(
                f"rollout.prompts_per_step: expected a multiple of the {share.world_size} processes, "
                f"got {rollout.prompts_per_step}"
            )
        self.folder, self.model, self.config = folder, folder.model, config
        self.out, self.device, self.share = out, device, share
        self.prompts = PromptStream(read_prompts(Path(rollout.prompts)), rollout.prompts_per_step, config.loop.seed)
        self.rewards = WeightedRewards.from_configs(config.rewards, config.max_reward_failures)
        self.roller = Roller(folder, rollout, resolved(config.loop.compute_dtype, device), config.loop.seed)
        self.reference = reference
        self.negative_ids = self.roller.negative_ids
        self._report: dict[str, float] = {}
        self._trained_from = 0.0

    def updates(self, step: int):
        per_process = self.config.rollout.prompts_per_step // self.share.world_size
        first = self.share.rank * per_process
        rollout = self.roller.draw(self.prompts.at(step)[first : first + per_process], step, first)
        began = time.perf_counter()
        scores = self.rewards.score(rollout.prompts, rollout.images)
        rollout.seconds["reward"] = time.perf_counter() - began
        group_size = self.config.rollout.group_size
        advantages, counts = group_advantages(scores.total, group_size, self.config.objective.scale_by_std)
        (num_sequences,) = combine([float(counts.sum())], self.share)
        self._describe(rollout, scores, advantages)
        self._trained_from = time.perf_counter()
        if not num_sequences:
            _log.warning("step %d: no picture has a reward, nothing is trained", step)
            return
        batches = self._micro_batches(rollout, advantages, counts, int(num_sequences))
        if self.config.updates > 1:
            with without_dropout(self.model), torch.no_grad(), autocast(self.config.loop, self.device):
                for batch in batches:
                    batch.old = self._log_probs(self.model, batch)
        for _ in range(self.config.updates):
            yield batches

    def loss(self, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        new = self._log_probs(self.model, batch)
        reference = None
        if self.reference is not None:
            with torch.no_grad():
                reference = self._log_probs(self.reference, batch)
        length = new.shape[1]
        return grpo_loss(
            new, new.detach() if batch.old is None else batch.old, batch.drawn, reference, batch.advantages,
            batch.counts[:, None].expand_as(new), batch.num_sequences * length, batch.num_sequences, length,
            self.config.objective,
        )  # fmt: skip

    def report(self) -> dict[str, float]:
        return {**self._report, "train_s": time.perf_counter() - self._trained_from}

    def validate(self, step: int) -> dict[str, float]:
        if self.config.sample.prompts:
            self.roller.live.refresh()
            if self.share.is_first:
                draw_sheet(
                    self.roller.live.engine, self.config.sample.prompts, self.config.sample.guidance_scale,
                    self.out / f"sample-{step}.png",
                )  # fmt: skip
        return {}

    def export(self, weights: dict[str, Tensor]) -> None:
        self.folder.save(self.out / "model", torch.bfloat16, weights)

    def _log_probs(self, model, batch: MicroBatch) -> Tensor:
        """float32 [B, n]: log-probabilities of the codes under the objective's distribution.

        Guidance mixes logits, u + s (c - u), and the head is linear: mixing final states gives the same logits for one
        product with the table instead of two. The temperature divides them the same way.
        """
        scale, offset = self.config.objective_guidance, self.model.config.visual_offset
        rows = [[Sequence(ids, codes)] for ids, codes in zip(batch.prompt_ids, batch.codes)]
        if scale != 1:
            rows += [[Sequence(self.negative_ids, codes)] for codes in batch.codes]
        laid = lay_out(rows, offset).to(self.device)
        number, length = batch.codes.shape
        targets = torch.as_tensor(batch.codes, dtype=torch.int64, device=self.device).reshape(-1)

        def head(hidden: Tensor, table: Tensor) -> Tensor:
            states = hidden[:, :-1][laid.kind[:, 1:] == VISUAL].view(len(rows), length, -1)
            if scale != 1:
                conditional, unconditional = states[:number], states[number:]
                states = unconditional + scale * (conditional - unconditional)
            states = states / self.config.rollout.temperature
            return token_log_probs(states.flatten(0, 1), table[offset:], targets, self.config.rollout.top_k)

        return model(laid.ids, None, head).view(number, length)

    def _micro_batches(self, rollout: Rollout, advantages, counts, num_sequences: int) -> list[MicroBatch]:
        size = self.config.micro_batch_size
        return [
            MicroBatch(
                rollout.prompt_ids[part], rollout.codes[part],
                torch.from_numpy(rollout.log_probs[part]).to(self.device),
                torch.from_numpy(advantages[part]).to(self.device), torch.from_numpy(counts[part]).to(self.device),
                num_sequences,
            )
            for part in (slice(begin, begin + size) for begin in range(0, len(rollout.codes), size))
        ]  # fmt: skip

    def _describe(self, rollout: Rollout, scores: Scores, advantages: np.ndarray) -> None:
        """The step's rewards in numbers, over all processes."""
        group_size = self.config.rollout.group_size
        valid = np.isfinite(scores.total)
        groups = scores.total.reshape(-1, group_size)
        stds = [np.std(g[np.isfinite(g)], ddof=1) for g in groups if np.isfinite(g).sum() > 1]
        codes = rollout.codes.reshape(len(groups), group_size, -1)
        differing = np.mean([(c[:, None] != c[None]).mean() * group_size / (group_size - 1) for c in codes])
        sums = {
            "reward": scores.total[valid].sum(), "valid": valid.sum(), "stds": sum(stds), "groups": len(stds),
            "rewards_nan": scores.num_nan, "reward_failures": len(scores.failures),
            "groups_without_signal": (advantages.reshape(-1, group_size) == 0).all(1).sum(),
            "diversity": differing, "processes": 1,
        }  # fmt: skip
        for name, values in scores.parts.items():
            sums[f"sum/{name}"], sums[f"number/{name}"] = np.nansum(values), np.isfinite(values).sum()
        total = dict(zip(sums, combine([float(v) for v in sums.values()], self.share)))
        slowest = combine([rollout.seconds[name] for name in ("rollout", "decode", "reward")], self.share, largest=True)
        nan = float("nan")
        self._report = {
            "reward": total["reward"] / total["valid"] if total["valid"] else nan,
            "reward_std": total["stds"] / total["groups"] if total["groups"] else nan,
            **{
                f"reward/{name}": total[f"sum/{name}"] / total[f"number/{name}"] if total[f"number/{name}"] else nan
                for name in scores.parts
            },
            "rewards_nan": int(total["rewards_nan"]), "reward_failures": int(total["reward_failures"]),
            "groups_without_signal": int(total["groups_without_signal"]),
            "diversity": total["diversity"] / total["processes"],
            "rollout_s": slowest[0], "decode_s": slowest[1], "reward_s": slowest[2],
        }  # fmt: skip


def grpo(config: GrpoConfig, out: Path, device: str, resume: bool = False, stop_at: int | None = None) -> Path:
    folder = from_folder(config.start, config.image_tokenizer)
    folder.lora = config.lora
    # Copied before training touches it; placed when this process knows which device is its own.
    reference = copy.deepcopy(folder.model).requires_grad_(False) if config.objective.beta else None

    def stage(share: Share) -> Grpo:
        if reference is not None:
            reference.to(device)
            if config.loop.sharding == "fsdp2":
                shard(reference, compute_dtype(config.loop, device))
        return Grpo(folder, reference, config, out, device, share)

    return run_stage(stage, folder, config, out, device, resume, stop_at)


if __name__ == "__main__":
    main_of(GrpoConfig, grpo, __doc__)
