"""Weight matrices as the CUDA kernels take them, in NumPy: see kernels/common/weight_tiles.cuh."""

import numpy as np

from simplear_engine.dtypes import encode_bfloat16
from simplear_engine.kernels.packed_weight import PackedWeight

TILE_ROWS = 8
TILE_ROW_BYTES = 64
_BYTES = {"float32": 4, "bfloat16": 2}


def tiles_of(weight: np.ndarray, dtype: str) -> np.ndarray:
    """[M, K] -> [M / 8, K / B, 8, B], B columns being 64 bytes, with zeros behind the matrix."""
    columns = TILE_ROW_BYTES // _BYTES[dtype]
    rows, k = weight.shape
    padded = np.pad(weight, ((0, -rows % TILE_ROWS), (0, -k % columns)))
    return padded.reshape(-1, TILE_ROWS, padded.shape[1] // columns, columns).transpose(0, 2, 1, 3)


def pack_tiles(parts: list[np.ndarray], dtype: str) -> PackedWeight:
    """Packs float32 matrices [M, K] of one shape as `dtype`, a tile of rows of each by turns (or the only one)."""
    from simplear_engine import _C

    tiles = np.stack([tiles_of(part, dtype) for part in parts], axis=1)
    flat = np.ascontiguousarray(tiles).reshape(-1)
    storage = (
        _C.Tensor.from_numpy(encode_bfloat16(flat), "bfloat16") if dtype == "bfloat16" else _C.Tensor.from_numpy(flat)
    )
    return PackedWeight(storage, (sum(len(part) for part in parts), parts[0].shape[1]))
