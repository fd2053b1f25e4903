"""What every peer shares: the work they all do, the shape of a peer's script, and the process that runs one.

The work: a Qwen2 of 0.5B with random weights and a vocabulary of 64,000, two sequences in lockstep, each step one
greedy token of each. A peer's script is a module with

    TITLE         the name in the table
    PACKAGE       the package whose version the table shows, None where there is none
    REQUIREMENTS  what pip installs into the peer's own environment, pinned; None: runs where the runner runs
    VARIANTS      {weight type of the table: Variant}
    convert(checkpoint, folder, weights)                    writes the peer's form of the checkpoint into `folder`
    Model(folder, weights, context, steps, threads)         loads it; see `Lockstep` for what it can do

and, where there is need, ABSENT ({weight type: why the peer has none}), UNWANTED (packages to remove after installing),
BUILD_ENVIRONMENT (variables for pip) and unavailable() (why this machine cannot run it, or None).
It imports its library only inside functions, so that the runner can read it anywhere. Run as a program
(`python -m peers.llama_cpp serve ...`) it becomes a process of the protocol in protocol.py. Nothing here knows a peer.
"""

import argparse
import importlib.metadata
import itertools
import json
import math
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from peers.protocol import answer, open_channel

VOCAB_SIZE = 64_000
SHAPE = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768,
}  # fmt: skip
HEAD_DIM = 64
# A token that no run may end with: peers are told that it ends a sequence and that no sequence ends early.
END_TOKEN = 0


@dataclass(frozen=True)
class Variant:
    """One way in which a peer stores weights. `stored` is how the table says it."""

    stored: str
    huge_pages: bool = True
    # Other environment variables of the process.
    environment: tuple[tuple[str, str], ...] = ()


def prompts(context: int) -> list[list[int]]:
    """Two different prompts of `context` tokens, the conditional and the unconditional one."""
    return [[1 + (7919 * (i + 1) + 31337 * row) % (VOCAB_SIZE - 1) for i in range(context)] for row in range(2)]


class Lockstep:
    """A loaded peer. A subclass has `prefill` and `step`, or `run` where its library cannot be driven by single steps.

    `forget` is called between runs, after which the next prefill starts from nothing.
    """

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        """Computes both prompts and returns the greedy token behind each."""
        raise NotImplementedError

    def step(self, tokens: list[int]) -> list[int]:
        """Feeds one token to each sequence and returns the greedy next ones."""
        raise NotImplementedError

    def forget(self) -> None:
        """Drops what the last run left behind."""

    def run(self, context: int, steps: int) -> dict:
        """One timed run: {"ms": [a step's milliseconds, ...], "tokens": [[...], [...]]}."""
        self.forget()
        tokens = self.prefill(prompts(context))
        rows, milliseconds = [[int(token)] for token in tokens], []
        for _ in range(steps):
            start = time.perf_counter()
            tokens = self.step(tokens)
            milliseconds.append(1e3 * (time.perf_counter() - start))
            for row, token in zip(rows, tokens, strict=True):
                row.append(int(token))
        return {"ms": milliseconds, "tokens": rows}


def pauses_ms(moments: list[float]) -> list[float]:
    """Milliseconds between the moments, in seconds, at which a library handed out its tokens."""
    return [1e3 * (later - earlier) for earlier, later in itertools.pairwise(moments)]


def check_run(result: dict, steps: int) -> None:
    """ValueError where a run did not do the work: wrong number of steps or tokens, or a time that is none."""
    if len(result["ms"]) != steps:
        raise ValueError(f"ms: expected {steps} steps, got {len(result['ms'])}")
    if not all(math.isfinite(value) and value > 0 for value in result["ms"]):
        raise ValueError("ms: expected finite positive numbers")
    for row in result.get("tokens") or []:
        if len(row) != steps + 1:
            raise ValueError(f"tokens: expected {steps + 1} in each sequence, got {len(row)}")
        if not all(0 <= token < VOCAB_SIZE for token in row):
            raise ValueError(f"tokens: expected numbers in 0..{VOCAB_SIZE - 1}")


def check_logits(logits) -> None:
    """ValueError where an array of logits is not finite. Outside the timing: for the end of a prefill."""
    import numpy as np

    if not np.isfinite(np.asarray(logits, np.float32)).all():
        raise ValueError("logits: expected finite numbers")


def converted(module, checkpoint: Path, work: Path, weights: str) -> Path:
    """The folder of the peer's own form of the checkpoint, made if it is not there yet."""
    name = module.__spec__.name.rpartition(".")[2]
    folder = work / "models" / name / weights
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        module.convert(checkpoint, partial, weights)
        partial.rename(folder)
    return folder


def version(module) -> str:
    return importlib.metadata.version(module.PACKAGE) if module.PACKAGE else ""


def main(module) -> None:
    """`convert` or `serve`: the two things that the runner asks of a peer's script."""
    parser = argparse.ArgumentParser(description=module.__doc__.split("\n")[0])
    parser.add_argument("action", choices=("convert", "serve"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", choices=module.VARIANTS, required=True)
    parser.add_argument("--context", type=int, default=32)
    parser.add_argument("--steps", type=int, default=64, help="the most steps that a run will ask for")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    channel = open_channel()
    folder = converted(module, options.work / "checkpoint" / "qwen2", options.work, options.weights)
    if options.action == "convert":
        return answer(channel, {"converted": str(folder)})
    start = time.perf_counter()
    model = module.Model(folder, options.weights, options.context, options.steps, options.threads)
    load_s = time.perf_counter() - start
    # The first run compiles, faults pages in and fills caches; nothing of it is kept.
    check_run(model.run(options.context, options.steps), options.steps)
    answer(channel, {"ready": True, "version": version(module), "load_s": round(load_s, 2)})
    for line in sys.stdin:
        steps = json.loads(line)["run"]
        result = model.run(options.context, steps)
        check_run(result, steps)
        answer(channel, result)
