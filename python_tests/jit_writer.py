"""Writes archives laid out like traced modules, good and hostile ones, without the framework that usually does."""

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np

_KINDS = {
    "float32": b"FloatStorage",
    "bfloat16": b"BFloat16Storage",
    "float16": b"HalfStorage",
    "int32": b"IntStorage",
    "int64": b"LongStorage",
}


def write_jit(path, tensors, root="module", pickle_bytes=None, compression=zipfile.ZIP_STORED) -> Path:
    """`tensors`: name -> (dtype name, array). `pickle_bytes` replaces the honest data.pkl."""
    path = Path(path)
    with zipfile.ZipFile(path, "w") as archive:
        for key, (_, array) in enumerate(tensors.values()):
            archive.writestr(f"{root}/data/{key}", np.ascontiguousarray(array).tobytes(), compression)
        archive.writestr(f"{root}/data.pkl", pickle_bytes or module_pickle(tensors), zipfile.ZIP_DEFLATED)
        archive.writestr(f"{root}/constants.pkl", b"\x80\x02).")
        archive.writestr(f"{root}/code/__torch__.py", b"raise SystemExit('code of an archive was run')")
        archive.writestr(f"{root}/byteorder", b"little")
        archive.writestr(f"{root}/version", b"3\n")
    return path


def module_pickle(tensors) -> bytes:
    tree: dict = {}
    for key, (name, (dtype, array)) in enumerate(tensors.items()):
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = tensor_code(str(key), dtype, array.shape)
    return b"\x80\x02" + _module_code(tree) + b"."


def tensor_code(key: str, dtype: str, shape, strides=None, offset=0, elements=None) -> bytes:
    count = int(np.prod(shape)) if elements is None else elements
    if strides is None:
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    storage = (
        b"(" + text("storage") + b"ctorch\n" + _KINDS[dtype] + b"\n" + text(key) + text("cpu") + number(count) + b"tQ"
    )
    sizes = b"(" + b"".join(number(n) for n in shape) + b"t(" + b"".join(number(n) for n in strides) + b"t"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(offset)
        + sizes
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def evil_pickle(command: str) -> bytes:
    class Evil:
        def __reduce__(self):
            import os

            return os.system, (command,)

    return pickle.dumps(Evil(), protocol=2)


def _module_code(node) -> bytes:
    if isinstance(node, bytes):
        return node
    items = b"".join(text(name) + _module_code(child) for name, child in node.items())
    return b"c__torch__.Module\nModule\n)\x81}(" + text("training") + b"\x89" + items + b"ub"
