"""Reads the pickle inside a traced module as data. Nothing is imported and nothing is called.

A pickle is a small program for a stack machine whose power lies in naming any Python function and calling it. This
reader runs only the opcodes that the traced-module writer emits; the few global names it accepts become inert marks,
everything else is an error. A tensor comes out as a description of where its numbers lie.
"""

import struct
from dataclasses import dataclass, field

from simplear_engine.errors import CheckpointError

_MAX_OBJECTS = 1 << 20

# Storage class -> dtype name of its elements.
STORAGE_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "BFloat16Storage": "bfloat16", "HalfStorage": "float16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class Global:
    name: str


@dataclass
class Module:
    """An object of a class of the archive's own code: only its attributes matter."""

    attributes: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    key: str
    dtype: str
    size: int  # elements


@dataclass(frozen=True)
class TensorView:
    storage: Storage
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements


_REBUILD = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
# Wrappers around a plain list or dictionary that tell its element type.
_TYPED = {f"torch.jit._pickle.{kind}" for kind in (
    "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag"
)}  # fmt: skip
_MARK = object()


def load(data: bytes, source: str):
    """The object that `data` describes; `source` names it in errors."""
    return _Reader(data, source).run()


class _Reader:
    def __init__(self, data: bytes, source: str):
        self.data, self.source = data, source
        self.position = 0
        self.stack: list = []
        self.memo: dict[int, object] = {}

    def run(self):
        for _ in range(_MAX_OBJECTS * 8):
            opcode = self.take(1)
            if opcode == b".":
                if len(self.stack) != 1:
                    self.fail("stack is not empty at the end")
                return self.stack[0]
            action = _ACTIONS.get(opcode)
            if action is None:
                self.fail(f"opcode {opcode!r} is not allowed")
            action(self)
            if len(self.stack) > _MAX_OBJECTS:
                break
        self.fail("too many objects")

    def fail(self, reason: str):
        raise CheckpointError(f"{self.source}: {reason} (byte {self.position} of the pickle)")

    def take(self, count: int) -> bytes:
        if count < 0 or self.position + count > len(self.data):
            self.fail("ends in the middle")
        self.position += count
        return self.data[self.position - count : self.position]

    def unpack(self, code: str):
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 4096)
        if end < 0:
            self.fail("a name does not end")
        return self.text(self.take(end + 1 - self.position)[:-1])

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail("text is not UTF-8")

    def push(self, value) -> None:
        self.stack.append(value)

    def pop(self, *kinds):
        value = self.stack.pop() if self.stack else _MARK
        if value is _MARK or (kinds and not isinstance(value, kinds)):
            self.fail(f"expected {' or '.join(k.__name__ for k in kinds) or 'a value'} on the stack")
        return value

    def pop_to_mark(self) -> list:
        for depth in range(len(self.stack) - 1, -1, -1):
            if self.stack[depth] is _MARK:
                values = self.stack[depth + 1 :]
                del self.stack[depth:]
                return values
        self.fail("no mark on the stack")

    def top(self, *kinds):
        value = self.pop(*kinds)
        self.push(value)
        return value

    # One method for each group of opcodes.

    def put(self, index: int) -> None:
        if len(self.memo) >= _MAX_OBJECTS:
            self.fail("too many objects")
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.fail(f"nothing is remembered under {index}")
        self.push(self.memo[index])

    def global_(self) -> None:
        name = f"{self.line()}.{self.line()}"
        module, _, kind = name.rpartition(".")
        allowed = (
            name in (_REBUILD, _PARAMETER, "collections.OrderedDict")
            or name in _TYPED
            or name.startswith("__torch__.")
            or (module == "torch" and kind in STORAGE_DTYPES)
        )
        if not allowed:
            self.fail(f"names the global {name!r:.200}, which a tokenizer file has no use for")
        self.push(Global(name))

    def tuple_(self, count: int | None) -> None:
        values = self.pop_to_mark() if count is None else [self.pop() for _ in range(count)][::-1]
        self.push(tuple(values))

    def long(self, count: int) -> None:
        if not 0 <= count <= 16:
            self.fail(f"a number of {count} bytes")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def new_object(self) -> None:
        self.pop(tuple, list)
        if not self.pop(Global).name.startswith("__torch__."):
            self.fail("creates an object that is not a module")
        self.push(Module())

    def build(self) -> None:
        state = self.pop()
        module = self.pop(Module)
        if not isinstance(state, dict):
            state = {}  # a module without attributes
        module.attributes.update({k: v for k, v in state.items() if isinstance(k, str)})
        self.push(module)

    def reduce(self) -> None:
        arguments, function = self.pop(tuple), self.pop(Global).name
        if function == _REBUILD:
            self.push(self.tensor(arguments))
        elif function == _PARAMETER and arguments and isinstance(arguments[0], TensorView):
            self.push(arguments[0])
        elif function == "collections.OrderedDict":
            self.push({})
        elif function in _TYPED and arguments:
            self.push(arguments[0])
        else:
            self.fail(f"calls {function!r:.200} with unexpected arguments")

    def tensor(self, arguments: tuple) -> TensorView:
        match arguments:
            case (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_) if (
                len(shape) == len(strides) <= 8
            ):
                if all(type(n) is int and 0 <= n < 1 << 48 for n in (offset, *shape, *strides)):
                    return TensorView(storage, offset, shape, strides)
        self.fail("a tensor is described wrongly")

    def persistent_id(self) -> None:
        match self.pop(tuple):
            case ("storage", Global(name), str(key), str(), int(size)) if size >= 0:
                dtype = STORAGE_DTYPES.get(name.removeprefix("torch."))
                if dtype is not None and key.isalnum():
                    return self.push(Storage(key, dtype, size))
        self.fail("a storage is described wrongly")

    def set_items(self, pairs: list) -> None:
        target = self.top(dict)
        if len(pairs) % 2:
            self.fail("a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2]):
            if not isinstance(key, (str, int)):
                self.fail(f"a {type(key).__name__} as a key")
            target[key] = value

    def append(self, values: list) -> None:
        self.top(list).extend(values)


_ACTIONS = {
    b"\x80": lambda r: r.take(1),
    b"c": _Reader.global_,
    b"(": lambda r: r.push(_MARK),
    b")": lambda r: r.push(()),
    b"t": lambda r: r.tuple_(None),
    b"\x85": lambda r: r.tuple_(1),
    b"\x86": lambda r: r.tuple_(2),
    b"\x87": lambda r: r.tuple_(3),
    b"}": lambda r: r.push({}),
    b"]": lambda r: r.push([]),
    b"N": lambda r: r.push(None),
    b"\x88": lambda r: r.push(True),
    b"\x89": lambda r: r.push(False),
    b"J": lambda r: r.push(r.unpack("<i")),
    b"K": lambda r: r.push(r.unpack("<B")),
    b"M": lambda r: r.push(r.unpack("<H")),
    b"G": lambda r: r.push(r.unpack(">d")),
    b"\x8a": lambda r: r.long(r.unpack("<B")),
    b"X": lambda r: r.push(r.text(r.take(r.unpack("<I")))),
    b"q": lambda r: r.put(r.unpack("<B")),
    b"r": lambda r: r.put(r.unpack("<I")),
    b"h": lambda r: r.get(r.unpack("<B")),
    b"j": lambda r: r.get(r.unpack("<I")),
    b"\x81": _Reader.new_object,
    b"R": _Reader.reduce,
    b"b": _Reader.build,
    b"Q": _Reader.persistent_id,
    b"s": lambda r: r.set_items([r.pop(), r.pop()][::-1]),
    b"u": lambda r: r.set_items(r.pop_to_mark()),
    b"a": lambda r: r.append([r.pop()]),
    b"e": lambda r: r.append(r.pop_to_mark()),
}
