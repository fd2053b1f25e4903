"""The single-image network after folding: a list of layers, each a few calls on a table of ops.

Activations are [B, h, w, C]. The op table decides what a packed convolution, an activation and a number are (NumPy
arrays in the reference, packed panels and recorded calls in the engine); this file only says what follows what. Both
families and both halves are the same layers.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Conv:
    """A convolution as data: zero padding in front of the first row and column, what is needed behind the last."""

    packed: Any  # as the op table's pack_conv made it
    pad: int = 1  # rows above = columns to the left
    stride: int = 1

    def __call__(self, ops, x, residual=None):
        return ops.conv2d(x, self, residual)


@dataclass(frozen=True)
class Norm:
    packed: Any
    groups: int


@dataclass(frozen=True)
class ResBlock:
    norm1: Norm
    conv1: Conv
    norm2: Norm
    conv2: Conv
    shortcut: Conv | None

    def __call__(self, ops, x):
        h = ops.group_norm(x, self.norm1, silu=True)
        h = self.conv1(ops, h)
        h = ops.group_norm(h, self.norm2, silu=True)
        return self.conv2(ops, h, residual=x if self.shortcut is None else self.shortcut(ops, x))


@dataclass(frozen=True)
class Attention:
    norm: Norm
    qkv: Conv  # three results side by side; the output projection is folded into the third

    def __call__(self, ops, x):
        return ops.spatial_attention(self.qkv(ops, ops.group_norm(x, self.norm, silu=False)), residual=x)


@dataclass(frozen=True)
class NormConv:
    """x + conv(norm(x)): what attention over a single frame comes down to."""

    norm: Norm
    conv: Conv

    def __call__(self, ops, x):
        return self.conv(ops, ops.group_norm(x, self.norm, silu=False), residual=x)


@dataclass(frozen=True)
class Upsample:
    """Nearest x2, then 3x3, done as four 2x2 convolutions at the low resolution: one for each corner of the x2 grid."""

    packed: Any

    def __call__(self, ops, x):
        return ops.upsample_conv2d(x, self)


@dataclass(frozen=True)
class Output:
    """Norm, SiLU and the last convolution, always float32: its numbers leave the network."""

    norm: Norm
    conv: Conv

    def __call__(self, ops, x):
        return ops.conv2d(ops.group_norm(x, self.norm, silu=True), self.conv, None, output_dtype="float32")


def run(layers: list, ops, x):
    for layer in layers:
        x = layer(ops, x)
    return x
