"""What every training loop needs around its loss: atomic checkpoints, averaged weights, a schedule and a log.

A checkpoint is written beside its final name and moved there, so a killed run leaves the previous one intact. The
data of a step depend on the step's number alone, hence (weights, averages, optimizer, step) is the whole state and a
resumed run repeats an uninterrupted one.
"""

import json
import math
import os
import time
from pathlib import Path

import torch
from torch import nn


def save_checkpoint(path: Path, state: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


class AveragedWeights:
    """Exponential moving average of a module's parameters; what is evaluated and shipped."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.values = {name: p.detach().clone().float() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.num_updates += 1
        # Early on the average would be dominated by the initial weights; a growing window avoids that.
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, p in module.named_parameters():
            self.values[name].lerp_(p.detach().float(), 1 - decay)

    def state(self) -> dict:
        return {"num_updates": self.num_updates, "values": self.values}

    def restore(self, state: dict) -> None:
        self.num_updates = state["num_updates"]
        for name, value in state["values"].items():
            self.values[name].copy_(value)


def cosine_learning_rate(step: int, steps: int, warmup_steps: int, peak: float, floor: float) -> float:
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(module: nn.Module, learning_rate: float, weight_decay: float, betas=(0.9, 0.95)) -> torch.optim.AdamW:
    """Matrices decay; vectors (norms, biases) do not."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)


class JsonlLog:
    """One JSON object a line, flushed at once, so that a run can be watched and plotted while it goes."""

    def __init__(self, path: Path, append: bool, enabled: bool = True):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a" if append else "w") if enabled else None
        self.start = time.monotonic()

    def write(self, **values) -> None:
        if self.file is None:
            return
        values["elapsed_s"] = round(time.monotonic() - self.start, 1)
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()
