"""Compiles the Triton implementations of ops to machine code, on a machine with or without a GPU.

`device_launches(op, fields, ...)` is what an engine on a GPU asks for when it records a graph: the launches of one op as
machine code, grid and bytes, which it loads (cuModuleLoadData) and replays without Python and without Triton. Arguments are
8 bytes for a pointer, 4 for an int32 or a float32, in the kernel's order; behind them stand two null pointers, for scratch
memory of Triton's own that none of our kernels uses.

Compiling takes seconds, so results are kept in a folder (SIMPLEAR_CACHE_DIR, else ~/.cache/simplear), one file for each
kernel, set of constants, target and version of Triton. A file that is damaged or of another version is compiled anew.
"""

import hashlib
import json
import logging
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from simplear_engine.atomic_file import atomic_writer
from simplear_engine.errors import InvalidRequestError, UnsupportedError
from simplear_engine.kernels.triton_launch import OPTIONS, Launch, launches_of

_log = logging.getLogger(__name__)

FORMAT = 1  # of the files
POINTERS = {"float32": "*fp32", "bfloat16": "*bf16", "int32": "*i32", "uint64": "*u64", "int8": "*i8", "uint8": "*u8",
            "float8_e4m3": "*u8"}  # fmt: skip
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int32": 4, "uint64": 8, "int8": 1, "uint8": 1}
ALIGNMENT = 16  # bytes, of every pointer that a kernel is handed
WORKSPACE_ALIGNMENT = 256

_compiled: dict[tuple[Path, str], "CompiledKernel"] = {}  # an engine asks for the same kernel for every layer


@dataclass(frozen=True)
class CompiledKernel:
    """Machine code and how it is started."""

    cubin: bytes
    name: str
    num_warps: int
    shared_bytes: int
    arguments: tuple[str, ...]  # names in order
    types: tuple[str, ...]  # "pointer", "int32" or "float32" of each


@dataclass(frozen=True)
class DeviceLaunch:
    """A kernel launch with nothing left to decide: `arguments` holds the bytes of each."""

    kernel: CompiledKernel
    grid: tuple[int, int, int]
    arguments: tuple[bytes, ...]

    @property
    def num_threads(self) -> int:
        return 32 * self.kernel.num_warps


@dataclass(frozen=True)
class Memory:
    """A tensor of the device as far as a kernel cares."""

    shape: tuple[int, ...]
    dtype: str
    address: int = 0


def device_launches(
    op: str,
    fields: Mapping[str, Any],
    counts: Mapping[str, int],
    capability: int,
    workspace: Callable[[int], int],
    folder: Path | None = None,
) -> list[DeviceLaunch]:
    """The launches of an op on a GPU of `capability` (10 times major plus minor), in order.

    fields: those of the op's struct (Op.fields); a size that is bound to a count of the step plan is a name in `counts`.
    workspace(bytes) -> address of so much memory, 256-byte aligned, that the op may overwrite; asked once.
    """
    sizes = {name: counts[value] for name, value in fields.items() if isinstance(value, str)}
    reserved = 0

    def scratch(shape: tuple[int, ...], dtype: str) -> Memory:
        nonlocal reserved
        memory = Memory(shape, dtype, reserved)
        needed = math.prod(shape) * ITEM_BYTES[dtype]
        reserved += -(-needed // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT
        return memory

    launches = [
        launch for launch in launches_of(op)(SimpleNamespace(**{**fields, **sizes}), scratch) if 0 not in launch.grid
    ]
    base = workspace(reserved) if reserved else 0
    return [_bound(launch, capability, base, folder or cache_folder()) for launch in launches]


def _bound(launch: Launch, capability: int, workspace: int, folder: Path) -> DeviceLaunch:
    kernel = compile_kernel(launch, capability, folder)

    def bytes_of(name: str, kind: str) -> bytes:
        value = launch.args[name]
        if kind == "pointer":
            if value.address % ALIGNMENT:  # compiled code relies on it
                raise UnsupportedError(
                    f"{launch.kernel.__name__}: {name}: expected memory aligned to {ALIGNMENT} bytes"
                )
            return struct.pack("<Q", value.address + (workspace if isinstance(value, Memory) else 0))
        return struct.pack("<i" if kind == "int32" else "<f", value)

    arguments = [bytes_of(name, kind) for name, kind in zip(kernel.arguments, kernel.types, strict=True)]
    return DeviceLaunch(kernel, (*launch.grid, 1, 1)[:3], (*arguments, bytes(8), bytes(8)))


def compile_kernel(launch: Launch, capability: int, folder: Path) -> CompiledKernel:
    import triton

    if triton.knobs.runtime.interpret:
        raise UnsupportedError("TRITON_INTERPRET is set: what Triton interprets it cannot compile")
    signature, constants, attributes = _signature(launch)
    source = triton.compiler.ASTSource(launch.kernel, signature, constants, attributes)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, **OPTIONS}
    key = json.dumps([FORMAT, triton.__version__, source.hash(), capability, options], sort_keys=True)
    if (found := _compiled.get((folder, key))) is not None:
        return found
    path = folder / f"{source.name}-sm{capability}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.kernel"
    kernel = _read(path, key) or _compile(source, capability, options, path, key)
    _compiled[folder, key] = kernel
    return kernel


def _compile(source, capability: int, options: dict, path: Path, key: str) -> CompiledKernel:
    import triton
    from triton.backends.compiler import GPUTarget

    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    metadata = result.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size or metadata.num_ctas != 1:
        raise UnsupportedError(f"kernel {source.name}: it wants memory or clusters that nobody here gives it")
    present = {name: kind for name, kind in source.signature.items() if kind != "constexpr"}
    types = tuple(
        "pointer" if kind[0] == "*" else {"i32": "int32", "fp32": "float32"}[kind] for kind in present.values()
    )
    kernel = CompiledKernel(
        result.asm["cubin"], metadata.name, metadata.num_warps, metadata.shared, tuple(present), types
    )
    _write(path, key, kernel)
    return kernel


def cache_folder() -> Path:
    base = os.environ.get("SIMPLEAR_CACHE_DIR")
    return (Path(base) if base else Path.home() / ".cache" / "simplear") / "triton"


def _signature(launch: Launch):
    """Triton's types of all parameters in order, the values of constants, and what is known about pointers."""
    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(launch.kernel.arg_names):
        value = launch.constants[name] if name in launch.constants else launch.args[name]
        if name in launch.constants or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, int):
            signature[name] = "i32"
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = POINTERS[value.dtype]
            attributes[(place,)] = [["tt.divisibility", ALIGNMENT]]
    return signature, constants, attributes


def _write(path: Path, key: str, kernel: CompiledKernel) -> None:
    facts = {**asdict(kernel), "key": key, "sha256": hashlib.sha256(kernel.cubin).hexdigest()}
    del facts["cubin"]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            file.write(json.dumps(facts).encode() + b"\n" + kernel.cubin)
    except (OSError, InvalidRequestError) as error:
        _log.warning("a compiled kernel was not kept, and will be compiled again next time: %s", error)


def _read(path: Path, key: str) -> CompiledKernel | None:
    try:
        head, _, cubin = path.read_bytes().partition(b"\n")
        facts = dict(json.loads(head))
        if facts.pop("key") != key or facts.pop("sha256") != hashlib.sha256(cubin).hexdigest():
            return None
        return CompiledKernel(cubin, **{name: tuple(v) if isinstance(v, list) else v for name, v in facts.items()})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
