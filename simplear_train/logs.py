"""Where the numbers of a run go: always one JSON object a line, and what else the config names.

A line is flushed at once, so that a run can be watched and plotted while it goes. A resumed run first forgets the
lines behind its checkpoint: those steps come again.
"""

import json
import math
import time
from pathlib import Path

from .checkpoint import TrainingError


class RunLog:
    def __init__(self, folder: Path, first_step: int, report_to: tuple[str, ...] = (), enabled: bool = True):
        self.file, self.board, self.wandb = None, None, None
        self.validated: set[int] = set()
        self.start = time.monotonic()
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        rows = [(line, json.loads(line)) for line in _lines(path)] if first_step else []
        kept = [(line, row) for line, row in rows if row.get("step", 0) <= first_step]
        path.write_text("".join(line + "\n" for line, _ in kept))
        # What validation says of a step stands in a row behind the step's own.
        self.validated = {row["step"] for _, row in kept if "step" in row and "learning_rate" not in row}
        self.file = path.open("a")
        if "tensorboard" in report_to:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise TrainingError("report_to: tensorboard is not installed: pip install tensorboard") from error
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)
        if "wandb" in report_to:
            try:
                import wandb
            except ImportError as error:
                raise TrainingError("report_to: wandb is not installed: pip install wandb") from error
            self.wandb = wandb.init(dir=str(folder), name=folder.name, resume="allow")

    def has_validation(self, step: int) -> bool:
        """Whether a run that goes on had validated the step already."""
        return step in self.validated

    def write(self, **values) -> None:
        if self.file is None:
            return
        values = {name: _rounded(v) if isinstance(v, float) else v for name, v in values.items()}
        values["elapsed_s"] = round(time.monotonic() - self.start, 1)
        try:
            self.file.write(json.dumps(values) + "\n")
            self.file.flush()
        except OSError as error:
            raise TrainingError(f"cannot write {self.file.name}: {error}") from error
        numbers = {name: v for name, v in values.items() if isinstance(v, (int, float)) and name != "step"}
        if self.board is not None and "step" in values:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, values["step"])
        if self.wandb is not None and "step" in values:
            self.wandb.log(numbers, step=values["step"])

    def close(self) -> None:
        for sink in (self.file, self.board):
            if sink is not None:
                sink.close()
        if self.wandb is not None:
            self.wandb.finish()


def _rounded(value: float) -> float | None:
    """Six digits; null where there is no number, which JSON has no word for."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _lines(path: Path) -> list[str]:
    """Whole lines only: a killed run may have left half of one."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [line for line in lines if line.startswith("{") and line.endswith("}")]
