"""The .safetensors container, read by mapping it and written atomically, with NumPy alone.

A file is an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, and the tensors'
bytes without gap or overlap. Everything in the header is checked before any of it is used, so a damaged or hostile
file ends in a `CheckpointError` and never in a wild pointer. The reader does not look at the numbers themselves.

A mapping shows the file as it is on disk: whoever shortens the file while it is in use takes the memory away.
Replace such a file by renaming a new one over it, as the writer here does.
"""

import json
import math
import mmap
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simplear_engine.atomic_file import atomic_writer
from simplear_engine.dtypes import STORAGE, to_float32
from simplear_engine.errors import CheckpointError
from simplear_engine.strict_json import parse_json_object, read_json_object

MAX_HEADER_BYTES = 100_000_000
DATA_ALIGNMENT = 64

_NAME_OF_CODE = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_CODE_OF_NAME = {name: code for code, name in _NAME_OF_CODE.items()}


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """One tensor of the file `path`: `data` is read-only, of `shape`, bfloat16 carried as uint16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray
    path: Path

    def to_float32(self) -> np.ndarray:
        """The values as float32; a view of the mapping when they are stored so. TypeError if they are not floating."""
        return to_float32(self.data, self.dtype)


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor to be written that need never stand in memory whole: `chunks()` yields its elements in order."""

    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[np.ndarray]]


def read_safetensors(path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Maps the file `path` and returns (tensors by name, metadata).

    Arrays are read-only views of the mapping, which lives as long as any of them; one whose bytes start at an
    address that its dtype does not allow is copied. Raises CheckpointError.
    """
    path = Path(path)
    buffer = _map_file(path)
    entries, metadata, data_start = _parse_header(buffer, path)
    tensors = {}
    for name, (dtype, shape, begin) in entries.items():
        storage = STORAGE[dtype]
        array = np.frombuffer(buffer, storage, math.prod(shape), data_start + begin).reshape(shape)
        if not array.flags.aligned:
            array = array.copy()
            array.flags.writeable = False
        tensors[name] = StoredTensor(name, dtype, shape, array, path)
    return tensors, metadata


def read_safetensors_shards(index_path) -> dict[str, StoredTensor]:
    """All tensors of the shards that an index file (`model.safetensors.index.json`) names.

    The index must agree with the shards exactly, and a shard must lie in the index's own folder (or in the `blobs`
    folder of the hub cache that the folder is a snapshot of). Raises CheckpointError.
    """
    index_path = Path(index_path)
    folder = index_path.parent
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: weight_map: expected an object with tensor names")
    for shard in weight_map.values():
        _check_shard_name(shard, folder, index_path)
    shards = sorted(set(weight_map.values()))

    missing = [shard for shard in shards if not os.path.lexists(folder / shard)]
    if missing:
        raise CheckpointError(f"{index_path}: these shards are missing: {', '.join(missing)}")
    extra = sorted({file.name for file in folder.glob("model-*-of-*.safetensors")} - set(shards))
    if extra:
        raise CheckpointError(f"{index_path}: these shards of the folder are not in the index: {', '.join(extra)}")

    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for name, tensor in read_safetensors(folder / shard)[0].items():
            if weight_map.get(name) != shard:
                place = weight_map.get(name, "no shard")
                raise CheckpointError(f"{folder / shard}: holds {name!r}, which {index_path.name} puts in {place}")
            tensors[name] = tensor
    absent = [f"{name} (in {shard})" for name, shard in weight_map.items() if name not in tensors]
    if absent:
        raise CheckpointError(f"{index_path}: tensors not found in their shards: {', '.join(absent)}")
    return tensors


def write_safetensors(path, tensors: Mapping, metadata: Mapping[str, str] | None = None) -> None:
    """Writes `tensors` to `path` as a whole or not at all.

    A value is a NumPy array, a StoredTensor, a pair (dtype name, array) such as ("bfloat16", uint16 bits), or a
    StreamedTensor. ValueError where dtype and data disagree; InvalidRequestError where the folder is not writable.
    """
    plan = {name: _as_streamed(name, value) for name, value in tensors.items()}
    # Widest first, so that no tensor starts at an address its dtype forbids.
    names = sorted(plan, key=lambda name: (-STORAGE[plan[name].dtype].itemsize, name))
    header: dict = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        end = offset + _byte_count(plan[name].dtype, plan[name].shape)
        header[name] = {
            "dtype": _CODE_OF_NAME[plan[name].dtype],
            "shape": list(plan[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)

    with atomic_writer(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            written = 0
            for chunk in plan[name].chunks():
                if chunk.dtype != STORAGE[plan[name].dtype]:
                    raise ValueError(f"{name}: expected chunks of {STORAGE[plan[name].dtype]}, got {chunk.dtype}")
                written += file.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
            expected = _byte_count(plan[name].dtype, plan[name].shape)
            if written != expected:
                raise ValueError(f"{name}: expected {expected} bytes of data, got {written}")


def _as_streamed(name, value) -> StreamedTensor:
    if isinstance(value, StreamedTensor):
        return value
    if isinstance(value, StoredTensor):
        dtype, array = value.dtype, value.data
    elif isinstance(value, tuple):
        dtype, array = value
        array = np.asarray(array)
    else:
        array = np.asarray(value)
        dtype = array.dtype.name
    if dtype not in STORAGE:
        raise ValueError(f"{name}: dtype {dtype} cannot be stored")
    if array.dtype.newbyteorder("=") != STORAGE[dtype].newbyteorder("="):
        raise ValueError(f"{name}: expected {STORAGE[dtype]} for {dtype}, got {array.dtype}")
    return StreamedTensor(dtype, array.shape, lambda: [array.astype(STORAGE[dtype], copy=False)])


def _byte_count(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * STORAGE[dtype].itemsize


def _map_file(path: Path) -> mmap.mmap:
    try:
        # Asked before opening, because opening a pipe would wait for its writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise CheckpointError(f"{path}: {size} bytes are too few for a safetensors file")
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _parse_header(buffer: mmap.mmap, path: Path):
    """Returns ({name: (dtype, shape, first byte)}, metadata, where the data starts in the file)."""
    header_bytes = int.from_bytes(buffer[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: header of {header_bytes} bytes, the limit is {MAX_HEADER_BYTES}")
    data_start = 8 + header_bytes
    if data_start > len(buffer):
        raise CheckpointError(f"{path}: header of {header_bytes} bytes, but the file has {len(buffer)}: truncated?")
    header = parse_json_object(buffer[8:data_start], f"{path}: header")

    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__: expected an object of strings")
    entries, spans = {}, []
    for name, entry in header.items():
        dtype, shape, begin, end = _parse_entry(name, entry, path)
        entries[name] = (dtype, shape, begin)
        spans.append((begin, end, name))

    expected = 0
    for begin, end, name in sorted(spans):
        if begin != expected:
            fault = (
                "overlaps the tensor before it" if begin < expected else f"leaves a hole of {begin - expected} bytes"
            )
            raise CheckpointError(f"{path}: {name!r}: starts at byte {begin} of the data and {fault}")
        expected = end
    available = len(buffer) - data_start
    if expected != available:
        fault = "truncated?" if available < expected else "bytes that no tensor owns"
        raise CheckpointError(
            f"{path}: the header describes {expected} bytes of data, the file has {available}: {fault}"
        )
    return entries, metadata, data_start


def _parse_entry(name: str, entry, path: Path):
    def fail(reason):
        raise CheckpointError(f"{path}: {name!r}: {reason}")

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        fail("expected an object with dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _NAME_OF_CODE:
        fail(f"dtype {code!r} is not supported; expected one of {', '.join(_NAME_OF_CODE)}")
    if not _is_list_of_sizes(shape) or len(shape) > 32:
        fail("shape: expected a list of at most 32 integers >= 0")
    if not _is_list_of_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        fail(f"data_offsets: expected [begin, end] with begin <= end, found {offsets!r:.100}")
    dtype = _NAME_OF_CODE[code]
    # Python integers do not overflow, but the sizes of arrays made from them do, even where one dimension is 0.
    if math.prod(max(size, 1) for size in shape) * STORAGE[dtype].itemsize >= 1 << 63:
        fail(f"shape {shape} is too large")
    needed = _byte_count(dtype, shape)
    if offsets[1] - offsets[0] != needed:
        fail(f"shape {shape} of {dtype} needs {needed} bytes, data_offsets give {offsets[1] - offsets[0]}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _is_list_of_sizes(value) -> bool:
    # bool is an int to isinstance, and JSON's true is not a size.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_shard_name(shard, folder: Path, index_path: Path) -> None:
    is_plain = isinstance(shard, str) and shard == os.path.basename(shard) and shard not in ("", ".", "..")
    if not is_plain or "\0" in shard or "\\" in shard or not shard.endswith(".safetensors"):
        raise CheckpointError(f"{index_path}: shard {shard!r:.200}: expected the plain name of a .safetensors file")
    try:
        target = (folder / shard).resolve()
    except (RuntimeError, ValueError) as error:  # a link to itself, a name that cannot be encoded
        raise CheckpointError(f"{index_path}: shard {shard!r:.200}: no such file: {error}") from None
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        # The hub cache keeps files in blobs/ and fills snapshots/<revision>/ with links to them.
        allowed.append(home.parent.parent / "blobs")
    if target.parent not in allowed:
        raise CheckpointError(f"{index_path}: shard {shard!r:.200} is a link that leaves the folder")
