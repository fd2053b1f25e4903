"""drafts.safetensors: which code follows which neighbours, learnt from a model's own pictures.

A checkpoint's folder may hold one; the engine then guesses well from the first picture on. What a tag stands for is
fixed in csrc/core/context_table.cc and draft.cc, so a file carries their version. A table that belongs to another
model, or to older weights, guesses badly and changes no picture.
"""

from pathlib import Path

import numpy as np

from simplear_engine.errors import CheckpointError, InvalidRequestError
from simplear_engine.safetensors_file import read_safetensors, write_safetensors

FILE_NAME = "drafts.safetensors"
VERSION = "1"
_COLUMNS = {"tag": "uint32", "code": "uint16", "num_right": "uint8", "num_seen": "uint8"}
_MAX_COUNT = 255
_MAX_CODE = (1 << 16) - 1


def read_drafts(path: Path, num_codes: int) -> np.ndarray:
    """int32 [4, n], the entries as `_C.Engine.insert_draft_entries` takes them. Raises CheckpointError."""
    tensors, metadata = read_safetensors(path)
    if metadata.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: expected version {VERSION}, found {metadata.get('version')}: learn it again with "
            "python -m simplear_train.learn_drafts, or delete it"
        )
    found = {name: (tensor.dtype, len(tensor.shape)) for name, tensor in tensors.items()}
    expected = {name: (dtype, 1) for name, dtype in _COLUMNS.items()}
    if found != expected or len({tensor.shape for tensor in tensors.values()}) != 1:
        raise CheckpointError(f"{path}: expected columns {expected} of one length, found {found}")
    columns = {name: tensors[name].data.astype(np.int64) for name in _COLUMNS}
    if columns["code"].size and columns["code"].max() >= num_codes:
        raise CheckpointError(f"{path}: expected codes below {num_codes}, found {columns['code'].max()}")
    return np.stack([column.astype(np.uint32).view(np.int32) for column in columns.values()])


def write_drafts(path: Path, entries: np.ndarray) -> None:
    """The reverse; counts above 255 are scaled down until they fit. InvalidRequestError where a code does not."""
    tag, code, num_right, num_seen = entries
    if code.size and code.max() > _MAX_CODE:
        raise InvalidRequestError(f"cannot write {path}: expected codes up to {_MAX_CODE}, got {code.max()}")
    scale = np.maximum(1, num_seen / _MAX_COUNT)
    columns = {"tag": tag.view(np.uint32), "code": code, "num_right": num_right / scale, "num_seen": num_seen / scale}
    write_safetensors(
        path,
        {name: np.ascontiguousarray(columns[name].astype(dtype)) for name, dtype in _COLUMNS.items()},
        {"version": VERSION},
    )
