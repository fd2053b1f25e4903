"""What every stage's command line has in common: config file, output folder, device, resuming."""

import argparse
import contextlib
import ctypes
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from simplear_engine.errors import InvalidRequestError, SimplearError

from .config_file import CONFIGS, config_path, read_config, to_toml
from .loop import CHECKPOINT, Loop, Stage, compute_dtype
from .lora import add_adapters
from .model_folder import ModelFolder
from .parallel import Share, join_peers, shard

_log = logging.getLogger(__name__)


def run_stage(
    make_stage: Callable[[Share], Stage], folder: ModelFolder, config, out: Path, device: str, resume: bool,
    stop_at: int | None = None,
) -> Path:  # fmt: skip
    """Runs a stage that trains `folder.model` under `config.loop`; returns the model folder that it leaves."""
    if folder.lora.rank and config.loop.optimizer == "gains":
        raise InvalidRequestError(
            'loop.optimizer: expected "adamw" or "muon" where lora.rank is not 0, got "gains": adapters begin as zeros, '
            "which a factor leaves as they are"
        )
    share = join_peers(device)
    model, loop = folder.model.to(device), config.loop
    if folder.lora.rank:
        torch.manual_seed(loop.seed)
        add_adapters(model, folder.lora)
    model.recompute_layers = loop.gradient_checkpointing
    if loop.compile:
        for layer in model.model.layers:
            layer.compile()
    if loop.sharding == "fsdp2":
        shard(model, compute_dtype(loop, device))
    run_loop(make_stage(share), config, out, device, share, resume, stop_at)
    return out / "model"


def run_loop(
    stage: Stage, config, out: Path, device: str, share: Share, resume: bool, stop_at: int | None = None
) -> None:  # fmt: skip
    """Trains as `config.loop` says, and leaves the whole config beside the log."""
    runner = Loop(stage, config.loop, out, device, share)
    # The config of a run that stands there already stays: this one is about to be refused.
    if share.is_first and (resume or not (out / CHECKPOINT).exists()):
        out.mkdir(parents=True, exist_ok=True)
        path, text = out / "config.toml", to_toml(config)
        if resume and path.exists() and path.read_text() != text:
            changed = [line for line in text.splitlines() if line not in path.read_text().splitlines()]
            _log.warning("%s: goes on with other settings than it began with: %s", out, "; ".join(changed))
        path.write_text(text)
    runner.run(resume, stop_at)


def keep_freed_memory() -> None:
    """Tells the C library to reuse large blocks instead of giving them back to the system, which hands them out again a
    zeroed page at a time: a tenth of a small model's step on a CPU. Does nothing where the library has no mallopt."""
    trim_threshold, mmap_max = -1, -4  # malloc.h
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def main_of(schema: type, train: Callable[..., Path], documentation: str) -> None:
    known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.toml")))
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help=f"TOML file, or one that comes with the package: {known}")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="replace one value of the config; repeatable",
    )
    parser.add_argument("--show", action="store_true", help="print the config with every value and stop")
    parser.add_argument("--out", type=Path, help="folder for log, checkpoint and result")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint, if it has one")
    args = parser.parse_args()
    if args.device == "cpu":
        keep_freed_memory()
    try:
        config = read_config(schema, config_path(args.config), tuple(args.set))
        if args.show:
            print(to_toml(config), end="")
            return
        if args.out is None:
            parser.error("--out: expected a folder")
        print(train(config, args.out, args.device, args.resume))
    except SimplearError as error:
        sys.exit(f"{type(error).__name__}: {error}")
