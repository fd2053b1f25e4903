"""The engine's noise in NumPy: Philox4x32-10 and its Gumbel transform, bit for bit as every backend computes them.

The noise of code v at `position` of the image with `seed` is word v % 4 of Philox with key = seed and counter =
(v // 4, position, 0, 0), turned into g = -log(-log(w)) by float32 operations in a fixed order (csrc/cpu/gumbel.h).
Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

import numpy as np

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)


def philox(key: int, c0: np.ndarray, c1: int, c2: int = 0, c3: int = 0) -> np.ndarray:
    """uint32 [4, *c0.shape]: the words of Philox4x32-10 for each first counter word in c0."""
    words = [np.asarray(c0, np.uint64)] + [np.full(np.shape(c0), c, np.uint64) for c in (c1, c2, c3)]
    keys = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * words[0], _MULTIPLIERS[1] * words[2]
        words = [
            (p1 >> np.uint64(32)) ^ words[1] ^ np.uint64(keys[0]),
            p1 & _LOW,
            (p0 >> np.uint64(32)) ^ words[3] ^ np.uint64(keys[1]),
            p0 & _LOW,
        ]
        keys = [(k + w) & 0xFFFFFFFF for k, w in zip(keys, _WEYL, strict=True)]
    return np.stack(words).astype(np.uint32)


_COEFFICIENTS = (
    1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1,
    3.3333331174e-1,
)  # fmt: skip
f32 = np.float32


def _log_of_parts(f, e):
    f2 = f * f
    p = f * f32(7.0376836292e-2) - f32(1.1514610310e-1)
    for c in _COEFFICIENTS:
        p = p * f + f32(c)
    y = p * f * f2
    y = y + e * f32(-2.12194440e-4)
    y = y - f2 * f32(0.5)
    return (f + y) + e * f32(0.693359375)


def _split(x):
    bits = x.view(np.int32)
    exponent = ((bits + np.int32(0x3F800000 - 0x3F3504F3)) >> 23) - 127
    return (bits - (exponent << 23)).view(np.float32) - f32(1), exponent.astype(np.float32)


def _unit_interval(bits):
    high, low = (bits >> np.uint32(8)).astype(np.float32), (bits & np.uint32(255)).astype(np.float32)
    return (high * f32(256) + (low + f32(0.5))) * f32(2.0**-32)


def gumbel(bits: np.ndarray) -> np.ndarray:
    """float32 Gumbel(0, 1) values in [-3.14, 22.9] of uint32 words."""
    v, w = _unit_interval(bits), _unit_interval(~bits)
    f, e = _split(w)
    near_one = v < f32(0.25)
    exponential = -_log_of_parts(np.where(near_one, -v, f), np.where(near_one, f32(0), e))
    return -_log_of_parts(*_split(exponential))


def gumbel_noise(seed: int, position: int, num_codes: int) -> np.ndarray:
    """float32 [num_codes]: the noise of every code for one token."""
    words = philox(seed, np.arange(-(-num_codes // 4)), position)
    return gumbel(words).T.reshape(-1)[:num_codes]
