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
    magnitude = np.abs(np.asarray(values, np.float32))
    exponent = np.frexp(np.maximum(magnitude, _SMALLEST_NORMAL))[1] - 1  # 2^exponent <= magnitude, from -6 on
    steps = np.rint(magnitude * np.exp2((_MANTISSA_BITS - exponent).astype(np.float32))).astype(np.int32)
    # A normal number has 8 to 15 steps of its exponent; 16 are the next exponent's 8, and the sum says so.
    codes = np.where(magnitude < _SMALLEST_NORMAL, steps, (exponent + 7) * 8 + steps - 8)
    return (codes | np.where(np.signbit(values), 128, 0)).astype(np.uint8)


def quantize_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [M, K] -> codes uint8 [M, K], scales float32 [M]."""
    weight = np.asarray(weight, np.float32)
    scales = (np.abs(weight).max(axis=1) / LARGEST).astype(np.float32)
    divisors = np.where(scales > 0, scales, np.float32(1))
    return encode(np.clip(weight / divisors[:, None], -LARGEST, LARGEST)), scales
