"""The loop that every kind of training runs in: schedule, optimizer, averages, checkpoints, log, progress bar.

A stage says what is trained and what a step's loss is; everything that a run has besides is here, once. The contract
about numbers: what `Stage.loss` returns are *contributions*. Added over micro-batches and processes they give the
step's loss and metrics, so that one process, several, and several micro-batches compute the same.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from simplear_engine.errors import InvalidRequestError

from .checkpoint import (
    AveragedWeights,
    TrainingError,
    load_checkpoint,
    model_state,
    optimizer_state,
    restore_model,
    restore_optimizers,
    save_checkpoint,
)
from .config_file import BELOW_ONE, COUNT, NOT_NEGATIVE, check_values
from .logs import RunLog
from .optimizers import optimizers_for
from .parallel import ALONE, Share, average_gradients, combine, whole
from .precision import resolved

CHECKPOINT = "checkpoint.pt"
WRITTEN = {"step", "model", "average", "optimizer", "num_skipped"}  # what every checkpoint holds


@dataclass(frozen=True)
class LoopConfig:
    """How long, how fast and how often. Weights and optimizer are float32; compute_dtype is what layers compute in,
    "auto" bfloat16 where the device multiplies in it and float32 elsewhere.

    optimizer: see optimizers.py. decay: which parameters weight_decay shrinks, "matrices" or, as SimpleAR does, all
    "but_biases".
    keep_models: steps whose model stays beside the last one, as model-STEP; each has to be one of save_every.
    clip_norm: largest length of a gradient, inf for any. log_every, validate_every, save_every: steps.
    ema_decay 0: no averages, the live weights are evaluated and saved. sharding: see parallel.py.
    max_skipped: updates in a row that may be skipped for a gradient that is not finite.
    """

    steps: int = 1000
    optimizer: Literal["adamw", "muon", "gains"] = "adamw"
    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    min_learning_rate: float = 0.0
    warmup_steps: int = 0
    weight_decay: float = 0.01
    decay: Literal["matrices", "but_biases"] = "matrices"
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 1.0
    max_skipped: int = 5
    ema_decay: float = 0.0
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    sharding: Literal["none", "fsdp2"] = "none"
    log_every: int = 20
    validate_every: int = 500
    save_every: int = 500
    keep_models: tuple[int, ...] = ()
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    seed: int = 0

    def __post_init__(self):
        check_values(
            self, "loop", steps=COUNT, log_every=COUNT, validate_every=COUNT, save_every=COUNT,
            learning_rate=NOT_NEGATIVE, min_learning_rate=NOT_NEGATIVE, weight_decay=NOT_NEGATIVE,
            warmup_steps=NOT_NEGATIVE, beta1=BELOW_ONE, beta2=BELOW_ONE, ema_decay=BELOW_ONE, max_skipped=NOT_NEGATIVE,
            clip_norm=("more than 0, inf for no limit", lambda value: value > 0),
            seed=("0 to 2^63 - 1", lambda value: 0 <= value < 1 << 63),
        )  # fmt: skip
        if late := [step for step in self.keep_models if step % self.save_every or not 1 <= step <= self.steps]:
            raise InvalidRequestError(
                f"loop.keep_models: expected multiples of save_every in 1..{self.steps}, got {late[0]}"
            )


class Stage(Protocol):
    """What is trained, and how a step's loss comes about."""

    name: str
    model: nn.Module

    def updates(self, step: int) -> Iterable[list[Any]]:
        """The optimizer updates of a step, usually one; each is a list of this process's micro-batches."""

    def loss(self, micro_batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Contributions to loss and metrics; those called *_max are combined by maximum, all others by sum."""

    def report(self) -> dict[str, float]:
        """What else is to be logged of the step just done, equal on every process."""

    def validate(self, step: int) -> dict[str, float]:
        """Called on every process with the weights that would be saved; may write pictures."""

    def export(self, weights: dict[str, Tensor]) -> None:
        """Called on the first process: writes what the run is for."""


def compute_dtype(config: LoopConfig, device: str) -> torch.dtype:
    return getattr(torch, resolved(config.compute_dtype, device))


def autocast(config: LoopConfig, device: str):
    """Where layers compute in less than float32."""
    return torch.autocast(
        torch.device(device).type, torch.bfloat16, enabled=compute_dtype(config, device) is torch.bfloat16
    )


def learning_rate(config: LoopConfig, step: int) -> float:
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    height = 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * height


@contextlib.contextmanager
def without_dropout(model: nn.Module):
    """The model answers as it will be used."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class Metrics:
    """Contributions of one step, added up (or the largest kept) as they come; of several updates the mean."""

    def __init__(self):
        self.values: dict[str, Tensor] = {}
        self.num_updates = 0

    def add(self, **contributions: Tensor) -> None:
        for name, value in contributions.items():
            value = torch.as_tensor(value).detach().double()
            before = self.values.get(name)
            if before is not None:
                value = torch.maximum(before, value) if name.endswith("_max") else before + value
            self.values[name] = value

    def combined(self, share: Share) -> dict[str, float]:
        """The step's metrics; every process calls it, after the same kind of steps."""
        result = {}
        for largest in (False, True):
            names = sorted(name for name in self.values if name.endswith("_max") == largest)
            values = combine([self.values[name].item() for name in names], share, largest)
            result |= {name: v if largest else v / self.num_updates for name, v in zip(names, values)}
        return result


class Loop:
    """One run of a stage in a folder: OUT/{checkpoint.pt, log.jsonl} and whatever the stage exports."""

    def __init__(self, stage: Stage, config: LoopConfig, out: Path, device: str, share: Share = ALONE):
        self.stage, self.config, self.out, self.device, self.share = stage, config, out, device, share
        self.optimizers = optimizers_for(stage.model, config)
        self.average = AveragedWeights(stage.model, config.ema_decay) if config.ema_decay else None
        self.skipped_in_a_row = 0
        self.num_skipped = 0

    def run(self, resume: bool, stop_at: int | None = None) -> None:
        """Trains to the end, or for tests to step `stop_at`. Raises TrainingError."""
        config, share = self.config, self.share
        has_begun = (self.out / CHECKPOINT).exists()
        if has_begun and not resume:
            raise InvalidRequestError(
                f"{self.out}: holds a run already; go on with it by --resume, or choose another --out"
            )
        first_step = self._restore() if has_begun else 0
        log = RunLog(self.out, first_step, config.report_to, share.is_first)
        if not first_step:
            log.write(
                parameters=sum(p.numel() for p in self.stage.model.parameters()),
                processes=share.world_size,
                compute_dtype=resolved(config.compute_dtype, self.device),
            )
        last_step = min(config.steps, stop_at or config.steps)
        progress = tqdm(
            range(first_step, last_step), initial=first_step, total=config.steps, desc=self.stage.name, mininterval=2,
            disable=not share.is_first,
        )  # fmt: skip
        try:
            if has_begun:
                self._catch_up(first_step, first_step >= last_step, log)
            for step in progress:
                began = time.perf_counter()
                metrics, norm = Metrics(), 0.0
                # Dropout is a function of the step, too, and every process drops something else.
                torch.manual_seed(hash((config.seed, step, share.rank)) & (2**63 - 1))
                for update in self.stage.updates(step):
                    norm = self._update(update, learning_rate(config, step), metrics)
                done = step + 1
                is_last = done == last_step
                if done % config.log_every == 0 or is_last:
                    values = {**metrics.combined(share), **self.stage.report()}
                    log.write(
                        step=done, **values, learning_rate=learning_rate(config, step), grad_norm=norm,
                        skipped_updates=self.num_skipped, step_s=time.perf_counter() - began,
                    )  # fmt: skip
                    progress.set_postfix({name: f"{values[name]:.4g}" for name in ("loss", "reward") if name in values})
                # First, so that nothing is lost where validation fails.
                if done % config.save_every == 0 or is_last:
                    self._save(done)
                if done % config.validate_every == 0 or is_last:
                    self._validate(done, log)
        finally:
            log.close()

    def _update(self, micro_batches: list, rate: float, metrics: Metrics) -> float:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        for micro_batch in micro_batches:
            with autocast(self.config, self.device):
                loss, parts = self.stage.loss(micro_batch)
            # Gradients are averaged over processes, contributions add up.
            (loss * self.share.world_size).backward()
            metrics.add(loss=loss, **parts)
        metrics.num_updates += 1
        average_gradients(self.stage.model, self.share)
        trained = [p for p in self.stage.model.parameters() if p.grad is not None]
        norm = whole(torch.nn.utils.clip_grad_norm_(trained, self.config.clip_norm)).item() if trained else 0.0
        if not math.isfinite(norm):
            self.num_skipped += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row > self.config.max_skipped:
                raise TrainingError(f"gradients were not finite in {self.skipped_in_a_row} updates in a row")
            return norm
        self.skipped_in_a_row = 0
        for optimizer in self.optimizers:
            optimizer.step()
        if self.average is not None:
            self.average.update(self.stage.model)
        return norm

    def _catch_up(self, done: int, is_last: bool, log: RunLog) -> None:
        """What a run that was killed right behind its checkpoint owes of that step: the model, where it is the last one or
        to be kept, and validation."""
        config = self.config
        lacks_model = done in config.keep_models and not (self.out / f"model-{done}").exists()
        lacks_validation = (done % config.validate_every == 0 or done >= config.steps) and not log.has_validation(done)
        # Folder and log are the first process's, but all have to come along.
        owed = [float(self.share.is_first and owes) for owes in (lacks_model, lacks_validation)]
        lacks_model, lacks_validation = combine(owed, self.share, largest=True)
        if is_last or lacks_model:
            self._save(done)
        if lacks_validation:
            self._validate(done, log)

    def _validate(self, done: int, log: RunLog) -> None:
        model = self.stage.model
        weights = contextlib.nullcontext() if self.average is None else self.average.in_place_of(model)
        with weights, without_dropout(model), torch.no_grad(), autocast(self.config, self.device):
            results = self.stage.validate(done)
        if results:
            log.write(step=done, **results)

    def _save(self, done: int) -> None:
        state = {
            "step": done,
            "model": model_state(self.stage.model),
            "average": self.average.state() if self.average is not None else None,
            "optimizer": optimizer_state(self.stage.model, self.optimizers),
            "optimizer_kind": self.config.optimizer,
            "num_skipped": self.num_skipped,
        }
        if self.share.is_first:
            save_checkpoint(self.out / CHECKPOINT, state)
            self.stage.export(state["model"] if self.average is None else state["average"]["values"])
            if done in self.config.keep_models:
                kept, building = self.out / f"model-{done}", self.out / f".model-{done}.new"
                for folder in (building, kept):
                    shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(self.out / "model", building)
                building.rename(kept)  # half a folder must not look like a kept model

    def _restore(self) -> int:
        path = self.out / CHECKPOINT
        state = load_checkpoint(path)
        if missing := sorted(WRITTEN - (state.keys() if isinstance(state, dict) else set())):
            raise TrainingError(f"{path}: expected the checkpoint of a run, found nothing of {', '.join(missing)}")
        kind = state.get("optimizer_kind", self.config.optimizer)  # earlier checkpoints do not say
        if kind != self.config.optimizer:
            raise TrainingError(
                f'{path}: loop.optimizer: expected "{kind}", which the run began with, got "{self.config.optimizer}"'
            )
        restore_model(self.stage.model, state["model"])
        restore_optimizers(self.stage.model, self.optimizers, state["optimizer"])
        if self.average is not None:
            if state["average"] is not None:
                self.average.restore(state["average"])
            else:  # a run that had none so far
                self.average = AveragedWeights(self.stage.model, self.config.ema_decay)
        self.num_skipped = state["num_skipped"]
        return state["step"]
