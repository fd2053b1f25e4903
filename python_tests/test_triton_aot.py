"""Triton kernels compiled for GPUs that need not be there, and what an engine needs to launch them."""

import json
import os
import struct
import subprocess
import sys

import pytest

from simplear_engine.kernels.op import all_ops
from simplear_engine.kernels.triton_launch import has_implementation

pytest.importorskip("triton")

# Compiled in a process of its own: this one interprets.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def run_python(*arguments: str, **environment) -> str:
    ended = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=600, env={**ENVIRONMENT, **environment}
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def report(folder):
    """A line for each kernel of each op, on both targets. It fails where registers are spilled."""
    lines = run_python(
        "-m", "simplear_engine.testing.triton_check", "--json", "--largest", SIMPLEAR_CACHE_DIR=str(folder)
    )
    return [json.loads(line) for line in lines.splitlines()]


def test_every_op_compiles_for_both_targets_without_spilling(report):
    compiled = {(row["op"], row["target"]) for row in report}
    assert compiled == {(op, target) for op in all_ops() if has_implementation(op) for target in ("sm_80", "sm_90")}


def test_shared_memory_is_within_what_a_block_may_have(report):
    for row in report:
        limit = {"sm_80": 163, "sm_90": 227}[row["target"]] * 1024
        assert row["shared_bytes"] <= limit, row


LAUNCH = """
import sys
from pathlib import Path
import triton
from simplear_engine.kernels.op import all_ops
from simplear_engine.testing.triton_check import fields_of
from simplear_engine.triton_aot import device_launches

compiled = []
compile_it = triton.compile
triton.compile = lambda *a, **k: compiled.append(a) or compile_it(*a, **k)
op = all_ops()["embed"]
fields = fields_of(op, op.bench_cases[0]) | {"num_tokens": "num_tokens"}
(launch,) = device_launches("embed", fields, {"num_tokens": 7}, 90, None, Path(sys.argv[1]))
kernel = launch.kernel
print(len(compiled), kernel.cubin[:4].hex(), kernel.name, *launch.grid, launch.num_threads)
print(*kernel.arguments)
print(*(argument.hex() for argument in launch.arguments))
"""


def launch_embed(folder):
    facts, names, arguments = run_python("-c", LAUNCH, str(folder)).splitlines()
    return facts.split(), names.split(), [bytes.fromhex(argument) for argument in arguments.split()]


def test_launch_has_the_bytes_of_each_argument_and_the_grid_of_the_step(folder):
    facts, names, arguments = launch_embed(folder)
    assert facts[1:] == [b"\x7fELF".hex(), "embed_row", "7", "1", "1", "128"]
    assert names == ["token_ids", "slot", "last_code", "table", "hidden", "visual_offset"]
    assert arguments == [struct.pack("<Q", 1 << 20)] * 5 + [struct.pack("<i", 151672)] + [bytes(8)] * 2


def test_compiled_kernel_is_kept_and_a_damaged_one_is_not_believed(tmp_path):
    first, *_ = launch_embed(tmp_path)
    again, *_ = launch_embed(tmp_path)
    assert (first[0], again[0]) == ("1", "0")
    (path,) = tmp_path.glob("embed_row-sm90-*.kernel")
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-9] + b"?" + whole[-8:], b"5\n", b"[" * 100_000):
        path.write_bytes(damaged)
        assert launch_embed(tmp_path)[0][0] == "1"
        assert path.read_bytes() == whole


def test_interpreted_kernels_cannot_be_compiled(folder):
    code = LAUNCH
    ended = subprocess.run(
        [sys.executable, "-c", code, str(folder / "none")], capture_output=True, text=True,
        env={**ENVIRONMENT, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert "UnsupportedError: TRITON_INTERPRET is set: what Triton interprets it cannot compile" in ended.stderr


PRODUCTS = """
import json, sys
from pathlib import Path
from simplear_engine.kernels.op import Case, all_ops
from simplear_engine.testing.triton_check import fields_of, product_instructions
from simplear_engine.triton_aot import device_launches

dtypes = {"x": "bfloat16", "weight": "bfloat16", "y": "float32"}
for capability in (80, 90):
    for rows in (1, 200):
        case = Case({"N": rows, "M": 64, "K": 128}, dtypes, {"accumulate": 0})
        (launch,) = device_launches("linear", fields_of(all_ops()["linear"], case), {}, capability, None, Path(sys.argv[1]))
        print(json.dumps([capability, rows, sorted(product_instructions(launch.kernel))]))
"""


def test_few_and_many_rows_meet_the_same_tensor_core_instruction(folder):
    """It may be wider, and adds each output in the same order: what contract C2 rests on."""
    found = [json.loads(line) for line in run_python("-c", PRODUCTS, str(folder)).splitlines()]
    assert len(found) == 4
    for capability, rows, instructions in found:
        assert instructions == {80: ["HMMA.16816"], 90: ["HGMMA.64xNx16"]}[capability], rows
