"""The op table in plain NumPy and float32: the references of the ops, run one after the other."""

import numpy as np

from simplear_engine.kernels import conv2d, group_norm, spatial_attention


class ReferenceOps:
    fold_dtype = np.float64

    def pack_conv(self, weight: np.ndarray, bias: np.ndarray, full_precision: bool = False):
        return self.pack_upsample(weight[None], bias)

    def pack_upsample(self, corners: np.ndarray, bias: np.ndarray):
        return corners.transpose(0, 1, 3, 4, 2).astype(np.float32), bias.astype(np.float32)

    def pack_norm(self, weight: np.ndarray, bias: np.ndarray):
        return weight.astype(np.float32), bias.astype(np.float32)

    def conv2d(self, x: np.ndarray, conv, residual=None, output_dtype=None) -> np.ndarray:
        return conv2d.reference(x, *conv.packed, conv.stride, conv.pad, residual)["y"]

    def upsample_conv2d(self, x: np.ndarray, upsample) -> np.ndarray:
        return conv2d.reference(x, *upsample.packed, stride=1, pad=0)["y"]

    def group_norm(self, x: np.ndarray, norm, silu: bool) -> np.ndarray:
        return group_norm.reference(x, *norm.packed, norm.groups, silu, eps=1e-6)["y"]

    def spatial_attention(self, qkv: np.ndarray, residual: np.ndarray) -> np.ndarray:
        return spatial_attention.reference(qkv, residual, scale=residual.shape[-1] ** -0.5)["y"]
