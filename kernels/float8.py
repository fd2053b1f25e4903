"""Weights in float8_e4m3 with one scale for each row, as the GPU kernels take them, in NumPy.

e4m3 has a sign, 4 bits of exponent and 3 of mantissa; its largest number is 448. A row's scale puts its largest weight
there. Activations stay bfloat16, and a product is scaled when it is summed up, so a row's rounding is all that is lost.
"""

import numpy as np

NAME = "float8_e4m3"
LARGEST = np.float32(448)
_SMALLEST_NORMAL, _MANTISSA_BITS = np.float32(2.0**-6), 3


def decode(codes: np.ndarray) -> np.ndarray:
    """uint8 -> float32, exactly. No code stands for an infinity; 0x7F and 0xFF, which mean NaN, are not made here."""
    exponent, mantissa = (codes >> 3) & 15, (codes & 7).astype(np.float32)
    magnitude = np.where(
        exponent > 0, (8 + mantissa) * np.exp2(exponent - np.float32(10)), mantissa * np.float32(2.0**-9)
    )
    return np.where(codes & 128, -magnitude, magnitude).astype(np.float32)


def encode(values: np.ndarray) -> np.ndarray:
    """Finite float32 of magnitude <= 448 -> uint8, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    # 23 bits of mantissa become 3; what is carried over is the next exponent. The exponent's bias goes from 127 to 7.
    codes = ((magnitude + np.uint32(0x7FFFF) + ((bits >> 20) & 1)) >> 20) - np.uint32((127 - 7) << _MANTISSA_BITS)
    is_small = magnitude < _SMALLEST_NORMAL.view(np.uint32)
    if is_small.any():
        codes[is_small] = np.rint(magnitude[is_small].view(np.float32) * np.float32(2.0**9)).astype(np.uint32)
    return (codes | (bits >> 24 & 128)).astype(np.uint8)


def quantize_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [M, K] -> codes uint8 [M, K], scales float32 [M]."""
    weight = np.asarray(weight, np.float32)
    scales = (np.abs(weight).max(axis=1) / LARGEST).astype(np.float32)
    divisors = np.where(scales > 0, scales, np.float32(1))
    return encode(np.clip(weight / divisors[:, None], -LARGEST, LARGEST)), scales
