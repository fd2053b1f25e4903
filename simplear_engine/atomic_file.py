"""Files that appear whole or not at all.

The bytes go to a temporary file beside the target, which is renamed over it at the end. A crash, a full disk or an
exception leaves the old file as it was.
"""

import contextlib
import os
from pathlib import Path

from simplear_engine.errors import InvalidRequestError


def check_writable(path) -> None:
    """Raises what `atomic_writer` would, before there is anything to write; `path` stays as it is."""
    with contextlib.suppress(_NotNow), atomic_writer(path):
        raise _NotNow


class _NotNow(Exception):
    pass


@contextlib.contextmanager
def atomic_writer(path):
    """Yields a binary file whose content replaces `path` when the block ends without an exception.

    InvalidRequestError where the folder is missing or not writable or `path` is a folder; other OSErrors (a full
    disk) pass through unchanged.
    """
    path = Path(path)
    if path.is_dir():
        raise InvalidRequestError(f"cannot write {path}: it is a folder")
    temporary = path.with_name(f".{os.urandom(8).hex()}.tmp")
    try:
        file = open(temporary, "xb")
    except FileNotFoundError:
        fault = "takes no new files" if path.parent.is_dir() else "does not exist"
        raise InvalidRequestError(f"cannot write {path}: the folder {path.parent} {fault}") from None
    except NotADirectoryError:
        raise InvalidRequestError(f"cannot write {path}: {path.parent} is not a folder") from None
    except PermissionError:
        raise InvalidRequestError(f"cannot write {path}: no permission to write in {path.parent}") from None
    try:
        with file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
