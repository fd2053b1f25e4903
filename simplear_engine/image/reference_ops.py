"""The op table in plain NumPy and float32: slow, short, and what the kernels are tested against."""

import math

import numpy as np


class ReferenceOps:
    epsilon = 1e-6

    def pack_conv(self, weight: np.ndarray, bias: np.ndarray, full_precision: bool = False):
        return weight.transpose(2, 3, 1, 0).astype(np.float32), bias.astype(np.float32)  # [kh, kw, in, out]

    def pack_upsample(self, corners: np.ndarray, bias: np.ndarray):
        return corners.transpose(0, 3, 4, 2, 1).astype(np.float32), bias.astype(np.float32)

    def pack_norm(self, weight: np.ndarray, bias: np.ndarray):
        return weight.astype(np.float32), bias.astype(np.float32)

    def from_numpy(self, x: np.ndarray) -> np.ndarray:
        return x

    def to_numpy(self, x: np.ndarray) -> np.ndarray:
        return x

    def conv2d(self, x: np.ndarray, conv, residual=None, output_dtype=None) -> np.ndarray:
        weight, bias = conv.packed
        height, width = x.shape[1] // conv.stride, x.shape[2] // conv.stride
        y = _convolve(x, weight, (conv.pad, conv.pad), conv.stride, height, width) + bias
        return y if residual is None else y + residual

    def upsample_conv2d(self, x: np.ndarray, upsample) -> np.ndarray:
        corners, bias = upsample.packed
        batch, height, width, _ = x.shape
        y = np.empty((batch, 2 * height, 2 * width, len(bias)), np.float32)
        for index, weight in enumerate(corners):
            row, column = divmod(index, 2)
            y[:, row::2, column::2] = _convolve(x, weight, (1 - row, 1 - column), 1, height, width) + bias
        return y

    def group_norm(self, x: np.ndarray, norm, silu: bool) -> np.ndarray:
        weight, bias = norm.packed
        batch, height, width, channels = x.shape
        grouped = x.reshape(batch, height * width, norm.groups, -1).astype(np.float64)
        mean = grouped.mean((1, 3), keepdims=True)
        variance = grouped.var((1, 3), keepdims=True)
        y = ((grouped - mean) / np.sqrt(variance + self.epsilon)).reshape(x.shape) * weight + bias
        return (y / (1 + np.exp(-y)) if silu else y).astype(np.float32)

    def spatial_attention(self, qkv: np.ndarray, residual: np.ndarray) -> np.ndarray:
        batch, height, width, channels = residual.shape
        q, k, v = np.split(qkv.reshape(batch, height * width, 3 * channels), 3, axis=2)
        scores = q @ k.transpose(0, 2, 1) / np.float32(math.sqrt(channels))
        weights = np.exp(scores - scores.max(2, keepdims=True))
        weights /= weights.sum(2, keepdims=True)
        return (weights @ v).reshape(residual.shape) + residual


def _convolve(x: np.ndarray, weight: np.ndarray, pad: tuple[int, int], stride: int, height: int, width: int):
    """[B, h, w, I] with zeros around -> [B, height, width, O]; weight [kh, kw, I, O]."""
    kh, kw, _, out = weight.shape
    behind = [(n - 1) * stride + k - p - size
              for n, k, p, size in zip((height, width), (kh, kw), pad, x.shape[1:3])]
    x = np.pad(x, ((0, 0), (pad[0], max(behind[0], 0)), (pad[1], max(behind[1], 0)), (0, 0)))
    y = np.zeros((len(x), height, width, out), np.float32)
    for row in range(kh):
        for column in range(kw):
            seen = x[:, row : row + height * stride : stride, column : column + width * stride : stride]
            y += seen @ weight[row, column]
    return y
