"""Weights and activations in a few bits, as the kernels round them, in NumPy.

csrc/cpu/quantize.cc (weights, once at load) and csrc/cpu/operand.h (activations, in every step) do the same with the same
float32 operations, so that integers and scales agree in every bit. Layouts in memory are panels.h's business.
"""

from dataclasses import dataclass

import numpy as np

from simplear_engine.dtypes import decode_bfloat16, encode_bfloat16

GROUP = 32  # neighbours in k that share a scale
QUANTIZED = ("int8", "int4")
_ERROR_LANES = 8
_FACTORS = (1.0, 0.9375, 1.0625, 0.875, 1.125)
_TINY = np.float32(1e-37)  # smaller scales have no inverse


@dataclass(frozen=True)
class Quantized:
    """integers [M, K'], K' = K up to a multiple of 32 with zeros; scales float32 [M, K' / 32]."""

    integers: np.ndarray
    scales: np.ndarray

    def values(self) -> np.ndarray:
        """float32 [M, K']: what the integers stand for."""
        return self.integers.astype(np.float32) * np.repeat(self.scales, GROUP, axis=1)


def padded(x: np.ndarray) -> np.ndarray:
    """float32 [M, K'] with zeros behind K."""
    return np.pad(np.asarray(x, np.float32), ((0, 0), (0, -x.shape[1] % GROUP)))


def quantize_weight(weight: np.ndarray, dtype: str) -> Quantized:
    """float32 [M, K] as "int8" (one scale a row) or "int4" (one scale for 32 weights); NaN is the scale of what holds a
    number that is none."""
    weight = padded(weight)
    groups = weight.reshape(len(weight), -1, GROUP)
    flawed = ~np.isfinite(groups).all(axis=2)
    if dtype == "int8":
        flawed = np.broadcast_to(flawed.any(axis=1, keepdims=True), flawed.shape)
    finite = np.where(flawed[:, :, None], np.float32(0), groups).reshape(weight.shape)
    found = _weight_int8(finite) if dtype == "int8" else _weight_int4(finite)
    return Quantized(found.integers, np.where(flawed, np.float32(np.nan), found.scales))


def quantize_rows(x: np.ndarray) -> Quantized:
    """float32 activations [N, K] as int8 with one scale for 32 neighbours: the largest magnitude becomes 127."""
    groups = padded(x).reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(largest < np.float32(1e-35), np.float32(0), np.float32(127) / largest)
        # Where a number is none, the scale is none either, and the integers do not matter.
        integers = np.nan_to_num(np.rint(groups * inverse[..., None]))
    return Quantized(integers.reshape(len(x), -1).astype(np.int32), largest / np.float32(127))


def product(x: Quantized, weight: Quantized) -> np.ndarray:
    """float64 [N, M]: exact integer sums within a group, scaled and added over groups."""

    def by_group(q):
        return q.integers.reshape(len(q.integers), -1, GROUP).transpose(1, 0, 2).astype(np.float64)

    dots = by_group(x) @ by_group(weight).transpose(0, 2, 1)  # [G, N, M]
    return (dots * x.scales.T[:, :, None] * weight.scales.T[:, None, :]).sum(axis=0)


def _weight_int8(weight: np.ndarray) -> Quantized:
    largest = np.abs(weight).max(axis=1)
    scales = largest / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scales < _TINY, np.float32(0), np.float32(127) / largest)
    integers = np.rint(weight * inverse[:, None]).astype(np.int32)
    return Quantized(integers, np.repeat(scales[:, None], weight.shape[1] // GROUP, axis=1))


def _weight_int4(weight: np.ndarray) -> Quantized:
    groups = weight.reshape(-1, GROUP)
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)[:, 0]
    integers = np.zeros_like(groups)
    scales = np.zeros(len(groups), np.float32)
    best = np.full(len(groups), np.inf, np.float32)
    for factor in _FACTORS:
        scale = decode_bfloat16(encode_bfloat16(extreme / np.float32(-8) * np.float32(factor)))
        usable = np.abs(scale) >= _TINY
        inverse = np.float32(1) / np.where(usable, scale, np.float32(1))
        candidate = np.clip(np.rint(groups * inverse[:, None]), -8, 7).astype(np.float32)
        squares = np.square(groups - candidate * scale[:, None]).reshape(len(groups), -1, _ERROR_LANES)
        better = usable & (_sum_in_order(_sum_in_order(squares, 1), 1) < best)
        best = np.where(better, _sum_in_order(_sum_in_order(squares, 1), 1), best)
        scales = np.where(better, scale, scales)
        integers = np.where(better[:, None], candidate, integers)
    shape = (len(weight), -1)
    return Quantized(integers.reshape(shape).astype(np.int32), scales.reshape(shape))


def _sum_in_order(x: np.ndarray, axis: int) -> np.ndarray:
    """float32 sum, first to last, as a loop adds; NumPy's own sum groups its terms."""
    return np.add.accumulate(x, axis=axis).take(-1, axis=axis)
