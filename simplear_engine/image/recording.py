"""Runs the network by recording it once for a picture size and replaying the recording without Python.

The recording owns the memory of all activations. While it is being made, an activation that nobody refers to any more
gives its memory to the next one, so that the order of calls in network.py alone decides what is needed at once.
"""

import math
from collections.abc import Callable

import numpy as np

from simplear_engine import _C, dtypes
from simplear_engine.image.network import Conv, Norm, Upsample
from simplear_engine.kernels.op import all_ops


class Recording:
    """`run_network(ops, x)` recorded for an input of `shape`; called, it maps float32 to float32 arrays.

    program: what the calls of implementation `impl` are added to. run(recording): carries them out.
    """

    def __init__(self, shape: tuple[int, ...], run_network: Callable, dtype: str, program, impl: str, run: Callable):
        ops = _RecordingOps(dtype, program, impl)
        first = ops.new(shape, "float32")
        last = run_network(ops, first)
        self._kept = first, last  # nobody else gets their memory
        self.input, self.output = first.storage, last.storage
        self._run = run

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The result is a view that the next call overwrites."""
        self.input.numpy()[...] = x
        self._run(self)
        return self.output.numpy()


class _Activation:
    """A tensor of the recording: what an op's argument must have, and the block of memory it lies in."""

    def __init__(self, shape: tuple[int, ...], dtype: str, block: np.ndarray, free_blocks: list):
        elements = block[: math.prod(shape) * dtypes.STORAGE[dtype].itemsize].view(dtypes.STORAGE[dtype])
        self.shape, self.dtype = shape, dtype
        self.storage = _C.Tensor.from_numpy(elements.reshape(shape), dtype)
        self._block, self._free_blocks = block, free_blocks

    def __del__(self):
        self._free_blocks.append(self._block)


class _RecordingOps:
    """The op table of network.py that appends calls to a program."""

    def __init__(self, dtype: str, program, impl: str):
        self.dtype = dtype
        self._program, self._impl = program, impl
        self._free_blocks: list[np.ndarray] = []

    def new(self, shape: tuple[int, ...], dtype: str) -> _Activation:
        size = math.prod(shape) * dtypes.STORAGE[dtype].itemsize
        fitting = [i for i, block in enumerate(self._free_blocks) if len(block) >= size]
        if fitting:
            block = self._free_blocks.pop(min(fitting, key=lambda i: len(self._free_blocks[i])))
        else:
            block = _C.Tensor.zeros([size], "uint8").numpy()
        return _Activation(shape, dtype, block, self._free_blocks)

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
