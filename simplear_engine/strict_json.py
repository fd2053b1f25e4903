"""JSON as a format for files that strangers wrote: bounded, without duplicates, without surprises.

`json.loads` accepts NaN, makes 1e999 infinite, keeps the last of two equal keys and may raise six kinds of exception. A
checkpoint's files are read through here instead, so that whatever is wrong with them becomes one `CheckpointError`
naming file and reason.
"""

import json
import math
import os
import stat
from pathlib import Path

from simplear_engine.errors import CheckpointError

MAX_JSON_BYTES = 64 << 20


def _unique_keys(pairs):
    result = dict(pairs)
    if len(result) != len(pairs):
        seen = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {repeated!r} occurs twice")
    return result


def _refuse_constant(name):
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text):
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text:.40} is larger than a float can be")
    return value


def parse_json_object(data: bytes, source) -> dict:
    """The object that `data` (UTF-8) spells; `source` names it in errors. Raises CheckpointError."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except RecursionError:
        raise CheckpointError(f"{source}: JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{source}: not UTF-8 at byte {error.start}") from None
    except ValueError as error:
        raise CheckpointError(f"{source}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: expected a JSON object, found {type(value).__name__}")
    return value


def read_file_bytes(path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of the regular file `path`, at most `max_bytes`. Raises CheckpointError."""
    path = Path(path)
    try:
        # Asked before opening, because opening a pipe would wait for its writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > max_bytes:
        raise CheckpointError(f"{path}: larger than {max_bytes} bytes, the limit for this kind of file")
    return data


def read_json_object(path, max_bytes: int = MAX_JSON_BYTES) -> dict:
    """The JSON object in file `path`. Raises CheckpointError."""
    return parse_json_object(read_file_bytes(path, max_bytes), path)
