"""What a run needs to go on where it was killed: atomic files that hold weights, averages and optimizer by name.

A checkpoint is written beside its final name, forced to disk and moved there, so a killed run leaves the previous one
intact. The data of a step depend on the step's number alone, hence (weights, averages, optimizer, step) is the whole
state and a resumed run repeats an uninterrupted one. Tensors are stored whole, so that a run may go on with
another number of processes.
"""

import contextlib
import os
from pathlib import Path

import torch
from torch import nn

from simplear_engine.errors import SimplearError

from .optimizers import kept_shapes
from .parallel import part_like, whole


class TrainingError(SimplearError, RuntimeError):
    """A run cannot go on, or not as it was asked to."""

    kind = "training"


def save_checkpoint(path: Path, state: dict) -> None:
    """Raises TrainingError where the disk is full or cannot be written; the previous checkpoint then still stands."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink()
        kept = "the previous checkpoint is intact" if path.exists() else "there is no earlier checkpoint"
        raise TrainingError(f"cannot write {path}: {error}; {kept}") from error


def load_checkpoint(path: Path) -> dict:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever the unpickler stumbled over
        raise TrainingError(f"cannot read {path}: {error}") from error


def _tensors(module: nn.Module) -> dict:
    """Parameters, and buffers too: what batch normalisation has averaged is part of a network."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def model_state(module: nn.Module) -> dict:
    return {name: whole(p.detach()).cpu() for name, p in _tensors(module).items()}


@torch.no_grad()
def restore_model(module: nn.Module, state: dict) -> None:
    parameters = _tensors(module)
    if parameters.keys() != state.keys():
        raise TrainingError(f"checkpoint: other parameters than the model: {sorted(parameters.keys() ^ state.keys())}")
    for name, p in parameters.items():
        if state[name].shape != p.shape:
            raise TrainingError(f"checkpoint: {name}: expected {list(p.shape)}, found {list(state[name].shape)}")
    for name, p in parameters.items():
        p.copy_(part_like(state[name], p))


def optimizer_state(module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict:
    """{parameter name: {what its optimizer keeps of it}}"""
    kept = {p: values for optimizer in optimizers for p, values in optimizer.state.items()}
    return {
        name: {key: whole(value).cpu() for key, value in kept[p].items()}
        for name, p in module.named_parameters()
        if p in kept
    }


@torch.no_grad()
def restore_optimizers(module: nn.Module, optimizers: list[torch.optim.Optimizer], state: dict) -> None:
    """TrainingError where another kind of optimizer kept something else of a parameter."""
    stepped_by = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for name, p in module.named_parameters():
        if name in state:
            found = {key: tuple(value.shape) for key, value in state[name].items()}
            if p not in stepped_by or found != kept_shapes(stepped_by[p], p):
                expected = kept_shapes(stepped_by[p], p) if p in stepped_by else "nothing"
                raise TrainingError(f"checkpoint: optimizer's values of {name}: expected {expected}, found {found}")
            stepped_by[p].state[p] = {
                key: value.clone() if key == "step" else part_like(value, p) for key, value in state[name].items()
            }


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

    @contextlib.contextmanager
    def in_place_of(self, module: nn.Module):
        """The module computes with the averages inside the block. Memory stays where it is, so an engine that borrows
        the parameters draws with them, too (once it has been told)."""
        parameters = dict(module.named_parameters())
        live = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(self.values[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(live[name])

    def state(self) -> dict:
        values = {name: whole(value).cpu() for name, value in self.values.items()}
        return {"num_updates": self.num_updates, "values": values}

    def restore(self, state: dict) -> None:
        self.num_updates = state["num_updates"]
        for name, value in state["values"].items():
            self.values[name].copy_(part_like(value, self.values[name]))
