"""Weight matrices as the CUDA kernels take them, in NumPy: see kernels/common/weight_tiles.cuh."""

import numpy as np

from simplear_engine.dtypes import encode_bfloat16
from simplear_engine.kernels import float8
from simplear_engine.kernels.packed_weight import PackedWeight

TILE_ROWS = 8
TILE_ROW_BYTES = 64
# Columns of a float8 tile in the order of its bytes.
_FLOAT8_ORDER = np.array(
    [first + i for t in range(4) for first in (8 * t, 8 * t + 4, 32 + 8 * t, 36 + 8 * t) for i in (0, 2, 1, 3)]
)


def tiles_of(weight: np.ndarray) -> np.ndarray:
    """[M, K] -> [M / 8, K / B, 8, B], B columns being 64 bytes, with zeros behind the matrix."""
    columns = TILE_ROW_BYTES // weight.itemsize
    rows, k = weight.shape
    padded = np.pad(weight, ((0, -rows % TILE_ROWS), (0, -k % columns)))
    return padded.reshape(-1, TILE_ROWS, padded.shape[1] // columns, columns).transpose(0, 2, 1, 3)


def by_turns(parts: list[np.ndarray]) -> np.ndarray:
    """The first tile of rows of each part, the second of each, and so on, as bytes."""
    return np.ascontiguousarray(np.stack(parts, axis=1)).reshape(-1).view(np.uint8)


def pack_tiles(parts: list[np.ndarray], dtype: str) -> PackedWeight:
    """Packs matrices [M, K] of one shape as `dtype`, a tile of rows of each by turns (or the only one); float32, or
    bfloat16 bits where `dtype` is that."""
    from simplear_engine import _C

    shape = (sum(len(part) for part in parts), parts[0].shape[1])
    if dtype == float8.NAME:
        codes, scales = zip(*(float8.quantize_rows(part) for part in parts), strict=True)
        scales = [np.pad(scale, (0, -len(scale) % TILE_ROWS)).reshape(-1, TILE_ROWS) for scale in scales]
        packed = np.concatenate([by_turns([tiles_of(code)[..., _FLOAT8_ORDER] for code in codes]), by_turns(scales)])
    elif dtype == "bfloat16":
        tiles = [tiles_of(part if part.dtype == np.uint16 else encode_bfloat16(part)) for part in parts]
        packed = by_turns(tiles).view(np.uint16)
    else:
        packed = by_turns([tiles_of(np.asarray(part, np.float32)) for part in parts]).view(np.float32)
    return PackedWeight(_C.Tensor.from_numpy(packed, dtype), shape)
