"""Finite scalar quantisation: the codebook is a grid, so a code index is a number in mixed base.

Dimension 0 is the least significant digit. A digit d of L levels stands for the value (d - L//2) / (L//2), so an
even number of levels never reaches +1. Source: Mentzer et al. 2023. There are no learned weights here.
"""

import math

import numpy as np


def basis(levels: tuple[int, ...]) -> np.ndarray:
    """[D] int64, what one step of each digit adds to the index."""
    return np.cumprod((1, *levels[:-1]), dtype=np.int64)


def decode(indices: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
    """int [...] -> float32 [..., D] in [-1, 1]."""
    size = np.asarray(levels, np.int64)
    half = size // 2
    digits = indices[..., None].astype(np.int64) // basis(levels) % size
    return ((digits - half) / half).astype(np.float32)


def encode(z: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
    """float32 [..., D], unbounded -> int32 [...]. Rounds half to even, as the network was trained."""
    size = np.asarray(levels, np.float32)
    half_width = (size - 1) * np.float32(1.001) / 2  # a hair wide, so that the outermost levels are reachable
    offset = np.where(np.asarray(levels) % 2, 0.0, 0.5).astype(np.float32)
    shift = np.array([math.atanh(o / h) for o, h in zip(offset.tolist(), half_width.tolist())], np.float32)
    bounded = np.tanh(z.astype(np.float32) + shift) * half_width - offset
    digits = np.rint(bounded).astype(np.int64) + np.asarray(levels) // 2
    return (digits * basis(levels)).sum(-1).astype(np.int32)
