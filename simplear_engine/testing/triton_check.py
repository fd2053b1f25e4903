"""Compiles the Triton kernels of ops for GPUs that need not be there, and tells what each of them uses.

    python -m simplear_engine.testing.triton_check [op ...]

The cases are those that the ops are timed with, in bfloat16 and float8 and in the smallest and the largest number of rows. A
kernel that spills registers keeps part of its work in slow memory: that is said, and the exit status is 1. (float32, which is
there for comparisons, spills.)
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path

from simplear_engine.kernels.op import Case, Op, all_ops, evaluate
from simplear_engine.kernels.packed_weight import PackedWeight
from simplear_engine.kernels.rope_append import CODES
from simplear_engine.kernels.triton_launch import has_implementation
from simplear_engine.testing import device_trial
from simplear_engine.triton_aot import CompiledKernel, Memory, cache_folder, device_launches

CAPABILITIES = (80, 90)


def check(op: Op, case: Case, capability: int, folder: Path) -> list[dict]:
    """What each kernel of the case uses."""
    launches = device_launches(op.name, fields_of(op, case), {}, capability, lambda size: 1 << 30, folder)
    return [
        {
            "op": op.name, "case": case.id, "target": f"sm_{capability}", "kernel": launch.kernel.name, "grid": launch.grid,
            "warps": launch.kernel.num_warps, "shared_bytes": launch.kernel.shared_bytes, **resources(launch.kernel),
        }
        for launch in launches
    ]  # fmt: skip


def fields_of(op: Op, case: Case) -> dict:
    """The struct's fields with memory that does not exist."""
    args = {}
    for name, spec in op.args.items():
        has_scales = name.endswith("_scale") and case.dtypes.get("k_cache") in CODES
        if spec.optional and name not in case.dtypes and not has_scales:
            continue
        dtype = case.dtypes.get(name, spec.dtypes[0])
        memory = Memory(tuple(evaluate(extent, case.axes) for extent in spec.extents), dtype, 1 << 20)
        args[name] = PackedWeight(memory, memory.shape) if name == "weight" and len(memory.shape) == 2 else memory
    return op.fields(args, case.scalars, "triton")


def resources(kernel: CompiledKernel) -> dict:
    """Registers of a thread, and bytes that it spills."""
    text = _dump(kernel, "-res-usage")
    return {
        "registers": int(re.search(r"REG:(\d+)", text)[1]),
        "spilled_bytes": int(re.search(r"STACK:(\d+)", text)[1]),
    }


def product_instructions(kernel: CompiledKernel) -> set[str]:
    """The tensor-core instructions of a kernel, without their width in rows: "HMMA.16816", "HGMMA.64xNx16"."""
    found = re.findall(r"\b(HMMA\.\w+|HGMMA\.\w+)", _dump(kernel, "-sass"))
    return {re.sub(r"^(HGMMA\.\d+x)\d+", r"\1N", instruction) for instruction in found}


def _dump(kernel: CompiledKernel, what: str) -> str:
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def cases_of(op: Op, only_largest: bool) -> list[Case]:
    def is_for_gpus(case: Case) -> bool:
        is_taken = all(d in (*op.args[name].dtypes, *op.args[name].gpu_dtypes) for name, d in case.dtypes.items())
        return is_taken and not {"float32", "int8", "int4"} & {case.dtypes.get(name) for name in ("weight", "x", "qkv")}

    found = [case for case in device_trial.cases_of(op.bench_cases) if is_for_gpus(case)]

    def dtypes(case: Case) -> list:
        return sorted(case.dtypes.items())

    by_dtypes = [list(cases) for _, cases in groupby(sorted(found, key=dtypes), key=dtypes)]
    return [case for cases in by_dtypes for case in (cases[-1:] if only_largest else cases[:1] + cases[1:][-1:])]


def main() -> int:
    parser = argparse.ArgumentParser(prog="simplear_engine.testing.triton_check", description=__doc__.split("\n")[0])
    parser.add_argument(
        "ops", nargs="*", metavar="op", help="names of ops (default: all that have a Triton implementation)"
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON for each kernel")
    parser.add_argument("--largest", action="store_true", help="only the largest number of rows")
    options = parser.parse_args()
    spilled = False
    for name, op in all_ops().items():
        if not has_implementation(name) or (options.ops and name not in options.ops):
            continue
        for case in cases_of(op, options.largest):
            for row in (row for capability in CAPABILITIES for row in check(op, case, capability, cache_folder())):
                spilled |= row["spilled_bytes"] > 0
                if options.json:
                    print(json.dumps(row), flush=True)
                else:
                    print(
                        f"{row['op']:<18}{row['kernel']:<16} {row['target']}  {row['warps']} warps  "
                        f"{row['registers']:>3} registers  {row['spilled_bytes']:>4} bytes spilled  "
                        f"{row['shared_bytes']:>6} bytes shared  {row['case']}",
                        flush=True,
                    )
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
