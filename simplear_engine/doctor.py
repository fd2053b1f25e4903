"""What this machine offers the engine, as lines of text: `simplear doctor`.

Every question is answered even where the answer to another is bad, so a broken installation can be examined. It asks
the operating system and the compiled module, and never loads a model, torch or a CUDA library.
"""

import importlib
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata as package_metadata
from pathlib import Path

import numpy as np

_REQUIRED_PACKAGES = ("tokenizers", "pillow", "tqdm")  # and NumPy, without which nobody gets as far as here
_HUB_PACKAGE = "huggingface_hub"
_VARIABLES = ("SIMPLEAR_CPU_ISA", "SIMPLEAR_OPS", "SIMPLEAR_CACHE_DIR", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")


def report() -> tuple[list[str], list[str]]:
    """(lines that describe the machine, lines that say what to do; none when all is well)."""
    facts: list[tuple[str, str]] = [
        ("Python", f"{platform.python_version()} ({sys.executable})"),
        ("System", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("CPU", cpu_model()),
        ("Cores", f"{len(_usable_cores())} usable of {os.cpu_count()}"),
        ("Memory", _memory()),
    ]
    advice: list[str] = []
    gpus = _gpus()
    facts.append(("GPU", gpus or "none found"))
    _describe_core(facts, advice, has_gpu=bool(gpus))
    _describe_default_model(facts, advice)
    facts.append(("numpy", np.__version__))
    for package in _REQUIRED_PACKAGES:
        version = _version_of(package)
        facts.append((package, version or "missing"))
        if version is None:
            advice.append(f"{package} is missing: pip install {package}")
    missing = f"missing, needed for hub ids only: pip install {_HUB_PACKAGE}"
    facts.append((_HUB_PACKAGE, _version_of(_HUB_PACKAGE) or missing))
    facts += [(name, os.environ[name]) for name in _VARIABLES if name in os.environ]
    return [f"{name:<16} {value}" for name, value in facts], advice


def _describe_core(facts: list, advice: list, has_gpu: bool) -> None:
    try:
        core = importlib.import_module("simplear_engine._C")
    except ImportError as error:
        facts.append(("Engine", f"not usable: {error}"))
        advice.append("the compiled engine cannot be loaded; build it in the project's folder: pip install .")
        return
    facts.append(("Engine", str(core.version)))
    facts.append(("Kernels", f"{', '.join(core.available_isas())} available"))
    try:
        facts.append(("Kernels chosen", core.chosen_isa()))
    except Exception as error:
        facts.append(("Kernels chosen", f"none: {error}"))
        advice.append(f"{error}; unset SIMPLEAR_CPU_ISA or set it to one of the available kernels")
    facts.append(("CUDA", "built in" if core.cuda_built() else "not built in (no nvcc when this was compiled)"))
    if has_gpu and not core.cuda_built():
        advice.append("there is a GPU, but the engine was built without CUDA: install the CUDA toolkit and build again")


def _describe_default_model(facts: list, advice: list) -> None:
    from simplear_engine.checkpoint import DEFAULT_MODEL_FOLDER

    files = (
        [file for file in DEFAULT_MODEL_FOLDER.rglob("*") if file.is_file()] if DEFAULT_MODEL_FOLDER.is_dir() else []
    )
    if files:
        facts.append(("Default model", f"present, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB"))
    else:
        facts.append(("Default model", "absent"))
        advice.append("no default model is installed: pass --model FOLDER or --model OWNER/NAME")


def _version_of(package: str) -> str | None:
    try:
        return package_metadata.version(package)
    except package_metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _usable_cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _memory() -> str:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return "unknown"
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return f"{kib['MemAvailable'] / 2**20:.1f} GiB available of {kib['MemTotal'] / 2**20:.1f} GiB"


def _gpus() -> str:
    """Names and memory of the GPUs, or nothing."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        # The tool without a driver, as in a container that was given no GPU.
        return ""
    return "; ".join(answer.splitlines())
