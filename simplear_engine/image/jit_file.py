"""The tensors of a traced module (`encoder.jit`, `decoder.jit`), without the framework that wrote it.

The archive's code is never looked at: a tensor's name is the path of attributes that leads to it. Numbers are read
from the file when asked for, so that a file costs memory only while a tensor is in use.
"""

import math
from dataclasses import dataclass

import numpy as np

from simplear_engine import dtypes
from simplear_engine.errors import CheckpointError
from simplear_engine.image import jit_pickle
from simplear_engine.image.zip_file import Entry, ZipFile

_MAX_PICKLE_BYTES = 16 << 20
_MAX_TENSORS = 1 << 14
_MAX_NAME = 512  # characters of a tensor's whole path


@dataclass(frozen=True, eq=False)
class JitTensor:
    """One tensor of an archive: the same face as a safetensors StoredTensor, read on use."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    archive: ZipFile
    entry: Entry
    view: jit_pickle.TensorView

    @property
    def data(self) -> np.ndarray:
        storage = self.view.storage
        numbers = np.frombuffer(
            self.archive.read(self.entry, self.entry.size), dtypes.STORAGE[self.dtype], storage.size
        )
        strides = tuple(stride * numbers.itemsize for stride in self.view.strides)
        view = np.lib.stride_tricks.as_strided(numbers[self.view.offset :], self.shape, strides, writeable=False)
        return np.ascontiguousarray(view)

    def to_float32(self) -> np.ndarray:
        return dtypes.to_float32(self.data, self.dtype)


def read_jit(path) -> dict[str, JitTensor]:
    """All tensors of the archive by name, constants included. Raises CheckpointError."""
    archive = ZipFile(path)
    pickles = [name for name in archive.entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{path}: expected one data.pkl, found {len(pickles)}: not a traced module?")
    root = pickles[0].removesuffix("data.pkl")
    _check_byte_order(archive, root)
    tree = jit_pickle.load(archive.read(archive.entries[pickles[0]], _MAX_PICKLE_BYTES), f"{path}: data.pkl")
    views = _flatten(tree, path)
    return {name: _locate(name, view, archive, root) for name, view in views.items()}


def _check_byte_order(archive: ZipFile, root: str) -> None:
    entry = archive.entries.get(f"{root}byteorder")
    if entry is not None and archive.read(entry, 16).strip() != b"little":
        raise CheckpointError(f"{archive.path}: only little-endian files are supported")


def _flatten(tree, path) -> dict[str, jit_pickle.TensorView]:
    if not isinstance(tree, jit_pickle.Module):
        raise CheckpointError(f"{path}: data.pkl: expected a module, found {type(tree).__name__}")
    views: dict[str, jit_pickle.TensorView] = {}
    pending = [("", tree)]
    visited = 0
    while pending:
        prefix, module = pending.pop()
        visited += 1
        if visited > _MAX_TENSORS or len(views) > _MAX_TENSORS:
            raise CheckpointError(f"{path}: data.pkl: more than {_MAX_TENSORS} modules or tensors")
        for name, value in module.attributes.items():
            # A module may be shared, and a hostile one may contain itself: the length of a path ends that.
            if len(prefix) + len(name) > _MAX_NAME:
                raise CheckpointError(f"{path}: data.pkl: modules are nested too deeply or names too long")
            if isinstance(value, jit_pickle.TensorView):
                views[prefix + name] = value
            elif isinstance(value, jit_pickle.Module):
                pending.append((f"{prefix}{name}.", value))
    if not views:
        raise CheckpointError(f"{path}: holds no tensors; a frozen module, perhaps?")
    return views


def _locate(name: str, view: jit_pickle.TensorView, archive: ZipFile, root: str) -> JitTensor:
    def fail(reason: str):
        raise CheckpointError(f"{archive.path}: {name}: {reason}")

    entry = archive.entries.get(f"{root}data/{view.storage.key}")
    if entry is None:
        fail(f"its storage data/{view.storage.key} is not in the archive")
    if not entry.is_stored:
        fail("its storage is compressed, which no writer of such files does")
    needed = view.storage.size * dtypes.STORAGE[view.storage.dtype].itemsize
    if entry.size != needed:
        fail(f"its storage has {entry.size} bytes, {view.storage.size} x {view.storage.dtype} need {needed}")
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides))
    count = math.prod(view.shape)
    if count and last >= view.storage.size:
        fail(f"shape {list(view.shape)} reaches past its storage of {view.storage.size} elements")
    # A stride of 0 could make a few bytes look like any number of them.
    if count > view.storage.size:
        fail(f"shape {list(view.shape)} has more elements than its storage ({view.storage.size})")
    return JitTensor(name, view.storage.dtype, view.shape, archive, entry, view)
