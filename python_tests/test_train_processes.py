"""Runs in processes of their own: killed at any moment, or spread over two of them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from test_train_resume import assert_equal_states, config_for, losses_of

from simplear_train.checkpoint import load_checkpoint
from simplear_train.config_file import to_toml
from simplear_train.pretrain import pretrain

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(tmp_path):
    config = config_for(tmp_path, steps=60, save_every=1, validate_every=1000)
    pretrain(config, tmp_path / "straight", "cpu")
    run, path = tmp_path / "killed", tmp_path / "config.toml"
    path.write_text(to_toml(config))
    command = [sys.executable, "-m", "simplear_train.pretrain", "--config", str(path), "--out", str(run), "--resume"]
    seed = random.randrange(1 << 30)
    print("seed", seed)  # shown where the test fails
    delay = random.Random(seed)
    log = run / "log.jsonl"
    for _ in range(2):
        child = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
    pretrain(config, run, "cpu", resume=True)
    assert_equal_states(
        load_checkpoint(tmp_path / "straight" / "checkpoint.pt"), load_checkpoint(run / "checkpoint.pt")
    )
    assert losses_of(run) == pytest.approx(losses_of(tmp_path / "straight"), abs=1e-6)


SPREAD = """
import sys
from pathlib import Path

from simplear_train.config_file import read_config
from simplear_train.pretrain import PretrainConfig, pretrain

for config in map(Path, sys.argv[1:]):
    pretrain(read_config(PretrainConfig, config), config.with_suffix(""), "cpu")
"""


def test_two_processes_give_the_curve_of_one_whole_or_sharded(tmp_path):
    config = config_for(tmp_path, steps=6, validate_every=3, save_every=100)
    pretrain(config, tmp_path / "one", "cpu")
    (tmp_path / "spread.py").write_text(SPREAD)
    for sharding in ("none", "fsdp2"):
        spread = replace(config, loop=replace(config.loop, sharding=sharding))
        (tmp_path / f"{sharding}.toml").write_text(to_toml(spread))
    # One start for both, because starting is what takes the time.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    configs = [str(tmp_path / f"{sharding}.toml") for sharding in ("none", "fsdp2")]
    ended = subprocess.run(
        [*torchrun, str(tmp_path / "spread.py"), *configs], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    for sharding in ("none", "fsdp2"):
        assert losses_of(tmp_path / sharding) == pytest.approx(losses_of(tmp_path / "one"), abs=1e-4)
        assert validations_of(tmp_path / sharding) == pytest.approx(validations_of(tmp_path / "one"), abs=1e-4)
    # What two processes saved, one can go on with.
    pretrain(replace(config, loop=replace(config.loop, steps=8)), tmp_path / "fsdp2", "cpu", resume=True)
    assert load_checkpoint(tmp_path / "fsdp2" / "checkpoint.pt")["step"] == 8


def validations_of(run) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["validation"] for row in rows if "validation" in row]
