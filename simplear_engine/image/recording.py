"""Runs the network by recording it once for a picture size and replaying the recording without Python.

The recording owns the memory of all activations. While it is being made, an activation that nobody refers to any more
gives its memory to the next one, so that the order of calls in network.py alone decides what is needed at once.
"""

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from simplear_engine import _C, dtypes
from simplear_engine.image.network import Conv, Norm, Upsample
from simplear_engine.kernels.op import all_ops


class HostMemory:
    """Blocks of host memory, each as large as the largest activation that it ever holds."""

    def __init__(self):
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...], dtype: str) -> tuple[_C.Tensor, np.ndarray]:
        """A tensor, and what to give back when nobody needs it."""
        storage = dtypes.STORAGE[dtype]
        size = math.prod(shape) * storage.itemsize
        fitting = [i for i, block in enumerate(self._free) if len(block) >= size]
        if fitting:
            block = self._free.pop(min(fitting, key=lambda i: len(self._free[i])))
        else:
            block = _C.Tensor.zeros([size], "uint8").numpy()
        return _C.Tensor.from_numpy(block[:size].view(storage).reshape(shape), dtype), block

    def give_back(self, block: np.ndarray) -> None:
        self._free.append(block)

    def write(self, tensor: _C.Tensor, values: np.ndarray) -> None:
        tensor.numpy()[...] = values

    def read(self, tensor: _C.Tensor) -> np.ndarray:
        return tensor.numpy()


class DeviceMemory:
    """Memory of a device; an activation goes where one of its shape has been, of which there are few shapes."""

    def __init__(self, backend):
        self._backend = backend
        self._free: dict[tuple, list[_C.Tensor]] = defaultdict(list)

    def take(self, shape: tuple[int, ...], dtype: str) -> tuple[_C.Tensor, _C.Tensor]:
        free = self._free[shape, dtype]
        tensor = free.pop() if free else self._backend.zeros(shape, dtype)
        return tensor, tensor

    def give_back(self, tensor: _C.Tensor) -> None:
        self._free[tuple(tensor.shape), tensor.dtype].append(tensor)

    def write(self, tensor: _C.Tensor, values: np.ndarray) -> None:
        self._backend.copy(_C.Tensor.from_numpy(np.ascontiguousarray(values, np.float32)), tensor)

    def read(self, tensor: _C.Tensor) -> np.ndarray:
        host = _C.Tensor.zeros(tensor.shape, tensor.dtype)
        self._backend.copy(tensor, host)
        return host.numpy()


class Recording:
    """`run_network(ops, x)` recorded for an input of `shape`; called, it maps float32 to float32 arrays.

    program: what the calls of implementation `impl` are added to. run(recording): carries them out. memory: where activations
    lie.
    """

    def __init__(
        self, shape: tuple[int, ...], run_network: Callable, dtype: str, program, impl: str, run: Callable, memory=None
    ):  # fmt: skip
        self.program = program
        self._memory = memory or HostMemory()
        ops = _RecordingOps(dtype, program, impl, self._memory)
        first = ops.new(shape, "float32")
        last = run_network(ops, first)
        self._kept = first, last  # nobody else gets their memory
        self.input, self.output = first.storage, last.storage
        self._run = run

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The result is a view that the next call overwrites."""
        self._memory.write(self.input, x)
        self._run(self)
        return self._memory.read(self.output)


class _Activation:
    """A tensor of the recording: what an op's argument must have, and its memory."""

    def __init__(self, shape: tuple[int, ...], dtype: str, memory):
        self.shape, self.dtype = shape, dtype
        self.storage, self._lent = memory.take(shape, dtype)
        self._memory = memory

    def __del__(self):
        if hasattr(self, "_memory"):  # missing where there was no memory to take
            self._memory.give_back(self._lent)


class _RecordingOps:
    """The op table of network.py that appends calls to a program."""

    def __init__(self, dtype: str, program, impl: str, memory):
        self.dtype = dtype
        self._program, self._impl, self._memory = program, impl, memory

    def new(self, shape: tuple[int, ...], dtype: str) -> _Activation:
        return _Activation(shape, dtype, self._memory)

    def conv2d(self, x: _Activation, conv: Conv, residual: _Activation | None, output_dtype: str | None = None):
        batch, height, width, _ = x.shape
        weight = conv.packed.weight
        y = self.new((batch, height // conv.stride, width // conv.stride, weight.shape[1]), output_dtype or self.dtype)
        args = {"x": x, "weight": weight, "bias": conv.packed.bias, "residual": residual, "y": y}
        return self._record("conv2d", args, y, stride=conv.stride, pad=conv.pad)

    def upsample_conv2d(self, x: _Activation, upsample: Upsample):
        batch, height, width, _ = x.shape
        weight = upsample.packed.weight
        y = self.new((batch, 2 * height, 2 * width, weight.shape[1]), self.dtype)
        args = {"x": x, "weight": weight, "bias": upsample.packed.bias, "y": y}
        return self._record("conv2d", args, y, stride=1, pad=0)

    def group_norm(self, x: _Activation, norm: Norm, silu: bool):
        y = self.new(x.shape, self.dtype)
        args = {"x": x, "weight": norm.packed.weight, "bias": norm.packed.bias, "y": y}
        return self._record("group_norm", args, y, groups=norm.groups, silu=int(silu))

    def spatial_attention(self, qkv: _Activation, residual: _Activation):
        y = self.new(residual.shape, self.dtype)
        args = {"qkv": qkv, "residual": residual, "y": y}
        return self._record("spatial_attention", args, y, scale=residual.shape[-1] ** -0.5)

    def _record(self, name: str, args: dict, result: _Activation, **scalars) -> _Activation:
        _OPS[name].record(self._program, self._impl, args, **scalars)
        return result


_OPS = all_ops()
