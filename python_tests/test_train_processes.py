"""Runs in processes of their own: killed at any moment, or spread over two of them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from test_train_resume import assert_equal_states, config_for, losses_of

from simplear_train.checkpoint import load_checkpoint
from simplear_train.config_file import to_toml
from simplear_train.grpo import grpo
from simplear_train.pretrain import pretrain
from test_train_grpo import config_for as grpo_config_for

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(tmp_path):
    config = config_for(tmp_path, steps=60, save_every=1, validate_every=1000)
    straight, run, path = tmp_path / "straight", tmp_path / "killed", tmp_path / "config.toml"
    path.write_text(to_toml(config))
    # Every run in a process of one thread: sums over two threads round differently from sums over one.
    command = [sys.executable, "-m", "simplear_train.pretrain", "--config", str(path), "--resume", "--out"]
    subprocess.run([*command, str(straight)], env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    seed = random.randrange(1 << 30)
    print("seed", seed)  # shown where the test fails
    delay = random.Random(seed)
    log = run / "log.jsonl"
    for _ in range(2):
        child = subprocess.Popen(
            [*command, str(run)], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        lines = len(log.read_text().splitlines()) if log.exists() else 0
        deadline = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < deadline:
            if log.exists() and len(log.read_text().splitlines()) > lines:
                break
            time.sleep(0.01)
        time.sleep(delay.random() * 0.4)
        child.send_signal(signal.SIGKILL)
        child.wait()
    # What a kill in the middle of a write leaves: half a file under the temporary name.
    (run / "checkpoint.pt.tmp").write_bytes(b"half")
    subprocess.run([*command, str(run)], env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    assert_equal_states(load_checkpoint(straight / "checkpoint.pt"), load_checkpoint(run / "checkpoint.pt"))
    assert losses_of(run) == losses_of(straight)


SPREAD = """
import sys
from pathlib import Path

from simplear_train.config_file import read_config
from simplear_train.grpo import GrpoConfig, grpo
from simplear_train.pretrain import PretrainConfig, pretrain

for path in map(Path, sys.argv[1:]):
    schema, stage = (GrpoConfig, grpo) if path.stem.startswith("grpo") else (PretrainConfig, pretrain)
    stage(read_config(schema, path), path.with_suffix(""), "cpu")
"""


def run_by_two_processes(tmp_path, configs: dict) -> None:
    """One start for all of them, because starting is what takes the time."""
    (tmp_path / "spread.py").write_text(SPREAD)
    for name, config in configs.items():
        (tmp_path / f"{name}.toml").write_text(to_toml(config))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*torchrun, str(tmp_path / "spread.py"), *(str(tmp_path / f"{name}.toml") for name in configs)],
        env={**ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parent)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_two_processes_give_the_curve_of_one_whole_or_sharded(tmp_path, tiny_checkpoint):
    config = config_for(tmp_path, steps=6, validate_every=3, save_every=100)
    rollouts = grpo_config_for(tmp_path, tiny_checkpoint, loop={"steps": 3})
    pretrain(config, tmp_path / "one", "cpu")
    grpo(rollouts, tmp_path / "grpo-one", "cpu")
    sharded = {"sharding": "fsdp2"}
    run_by_two_processes(
        tmp_path,
        {
            "whole": config, "sharded": replace(config, loop=replace(config.loop, **sharded)),
            "grpo-whole": rollouts, "grpo-sharded": replace(rollouts, loop=replace(rollouts.loop, **sharded)),
        },
    )  # fmt: skip
    for name in ("whole", "sharded"):
        assert losses_of(tmp_path / name) == pytest.approx(losses_of(tmp_path / "one"), abs=1e-4)
        assert validations_of(tmp_path / name) == pytest.approx(validations_of(tmp_path / "one"), abs=1e-4)
        # Every process draws its own groups, from whole copies where parameters are sharded: the same pictures.
        for key in ("loss", "reward", "kl", "diversity"):
            ours, theirs = (values_of(tmp_path / f"grpo-{run}", key) for run in (name, "one"))
            assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-4) and len(theirs) == 3
    # What two processes saved, one can go on with.
    pretrain(replace(config, loop=replace(config.loop, steps=8)), tmp_path / "sharded", "cpu", resume=True)
    assert load_checkpoint(tmp_path / "sharded" / "checkpoint.pt")["step"] == 8


def values_of(run, key: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def validations_of(run) -> list[float]:
    return values_of(run, "validation")
