"""The arithmetic of GRPO on tensors: advantages within groups, and the loss of one micro-batch.

    advantage[i]  = (reward[i] - mean of its group) / (std of its group + 1e-4)
    ratio[i, t]   = p_new / p_old           of the trainer's own distribution, before and after updates on one rollout
    weight[i, t]  = min(p_old / p_drawn, cap)       corrects that the engine drew from a slightly different one
    loss[i, t]    = -weight * min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) + beta * k3
    k3[i, t]      = exp(ref - new) - (ref - new) - 1      an estimate of KL(new || ref) that is never negative

How the table of losses becomes one number (every token that counts has mask 1):

    token_mean       sum over all tokens of the step / number of them                          (SimpleAR, DAPO)
    sequence_mean    mean over a sequence's tokens, then mean over sequences                   (the original GRPO)
    length_unbiased  sum over all tokens / (sequences * longest possible length)               (Dr. GRPO)

With ratio_level "sequence" a sequence has one ratio, the geometric mean of its tokens' (GSPO). A reward that is NaN
takes its sequence out: advantage 0 and mask 0; a group of which fewer than two are left teaches nothing.

Nothing here knows about models, engines or pictures. Sources: Shao et al. 2024 (GRPO); Yu et al. 2025 (DAPO); Liu et al.
2025 (Dr. GRPO); Zheng et al. 2025 (GSPO); Schulman 2020 (k3); Yao et al. 2025 (truncated importance sampling).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .config_file import NOT_NEGATIVE, check_values


@dataclass(frozen=True)
class ObjectiveConfig:
    """beta 0 needs no reference model; importance_cap 0 corrects nothing."""

    beta: float = 0.04
    clip_low: float = 0.2
    clip_high: float = 0.2
    mean: Literal["token_mean", "sequence_mean", "length_unbiased"] = "token_mean"
    ratio_level: Literal["token", "sequence"] = "token"
    scale_by_std: bool = True
    importance_cap: float = 2.0

    def __post_init__(self):
        check_values(
            self, "objective", beta=NOT_NEGATIVE, clip_low=NOT_NEGATIVE, clip_high=NOT_NEGATIVE,
            importance_cap=NOT_NEGATIVE,
        )  # fmt: skip


def group_advantages(rewards: np.ndarray, group_size: int, scale_by_std: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(float32 advantages [N], bool [N] which sequences count) of rewards [N], groups standing together."""
    groups = rewards.reshape(-1, group_size).astype(np.float64)
    counts = np.isfinite(groups)
    counts &= counts.sum(1, keepdims=True) >= 2
    number = np.maximum(counts.sum(1, keepdims=True), 2)
    mean = np.where(counts, groups, 0).sum(1, keepdims=True) / number
    centred = np.where(counts, groups - mean, 0)
    if scale_by_std:
        centred /= np.sqrt((centred**2).sum(1, keepdims=True) / (number - 1)) + 1e-4
    return centred.reshape(-1).astype(np.float32), counts.reshape(-1)


def grpo_loss(
    new: Tensor, old: Tensor, drawn: Tensor | None, reference: Tensor | None, advantages: Tensor, mask: Tensor,
    num_tokens: int, num_sequences: int, max_length: int, config: ObjectiveConfig,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Contribution of a micro-batch to the step's loss, and to its metrics.

    new, old, drawn, reference: log-probabilities [B, T], `new` alone with a gradient; advantages [B]; mask [B, T].
    num_tokens, num_sequences: of the whole step, all processes together (those with mask 1).
    """
    mask = mask.to(new.dtype)
    lengths = mask.sum(1).clamp(min=1)
    log_ratio = new - old
    if config.ratio_level == "sequence":
        log_ratio = ((log_ratio * mask).sum(1, keepdim=True) / lengths[:, None]).expand_as(new)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    gain = torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None])
    if drawn is not None and config.importance_cap:
        gain = gain * (old - drawn).exp().clamp(max=config.importance_cap)
    losses = -gain
    metrics = {"clip_ratio": _mean((ratio != clipped).to(new.dtype), mask, num_tokens)}
    if reference is not None:
        difference = reference - new
        k3 = difference.exp() - difference - 1
        losses = losses + config.beta * k3
        metrics["kl"] = _mean(k3.detach(), mask, num_tokens)
    metrics["entropy"] = _mean(-new.detach(), mask, num_tokens)
    if drawn is not None:
        gap = (old - drawn).abs() * mask
        metrics["mismatch"] = gap.sum() / num_tokens
        metrics["mismatch_max"] = gap.max()
    if config.mean == "token_mean":
        loss = (losses * mask).sum() / num_tokens
    elif config.mean == "sequence_mean":
        loss = ((losses * mask).sum(1) / lengths).sum() / num_sequences
    else:
        loss = (losses * mask).sum() / (num_sequences * max_length)
    return loss, metrics


def _mean(values: Tensor, mask: Tensor, num_tokens: int) -> Tensor:
    return (values * mask).sum() / num_tokens
