"""What ops with weights have in common in Triton: rows are prepared once, then tiles of weights meet tiles of rows.

Weights lie as the CUDA kernels have them (kernels/weight_tiles.py), so that an engine packs them once. A tile of 64 outputs stands on the left of every tensor-core product and the rows of the
step on its right, [K, rows]: with 16 rows or 128, the same instruction adds the same 16 products of k at a time, in
ascending order. That is what keeps a row's sum the same in every crowd (contract C2).
"""

import triton
import triton.language as tl

from simplear_engine.kernels.float8 import NAME as FLOAT8
from simplear_engine.kernels.float8_triton import decode as decode_float8
from simplear_engine.kernels.triton_launch import Launch, power_of_2, stages, tiles
from simplear_engine.kernels.weight_tiles import TILE_ROW_BYTES

OUTS = 64  # outputs of a tile
K_TILE = {"float32": 32, "bfloat16": 128, FLOAT8: 128}
ITEM_BYTES = {"float32": 4, "bfloat16": 2, FLOAT8: 1}


@triton.jit
def prepare_row(x, row_of, norm_weight, z, eps, K: tl.constexpr, BLOCK: tl.constexpr):
    """z[n] = RMSNorm(x[row_of[n]]), rounded to the type of z."""
    n = tl.program_id(0).to(tl.int64)
    row = n
    if row_of is not None:
        row = tl.load(row_of + n).to(tl.int64)
    k = tl.arange(0, BLOCK)
    values = tl.load(x + row * K + k, mask=k < K, other=0)
    scale = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(values * values, axis=0), K * 1.0) + eps))
    weights = tl.load(norm_weight + k, mask=k < K).to(tl.float32)
    tl.store(z + n * K + k, (values * scale * weights).to(z.dtype.element_ty), mask=k < K)


@triton.jit
def weight_tile(
    weight, outs, out_mask, k, K: tl.constexpr, K_TILE: tl.constexpr, COLUMNS: tl.constexpr,
    TURN: tl.constexpr = 0, TURNS: tl.constexpr = 1,
):  # fmt: skip
    """[outs, k] of a matrix, or of one of TURNS matrices that were packed by turns; k counts as memory does."""
    TILES: tl.constexpr = (K + COLUMNS - 1) // COLUMNS
    tile = (outs // 8 * TURNS + TURN).to(tl.int64) * TILES
    at = weight + (tile * 8 + outs % 8)[:, None] * COLUMNS + (k // COLUMNS * (8 * COLUMNS) + k % COLUMNS)[None, :]
    if K % K_TILE == 0:
        values = tl.load(at, mask=out_mask[:, None], other=0)
    else:
        values = tl.load(at, mask=out_mask[:, None] & (k < TILES * COLUMNS)[None, :], other=0)
    if COLUMNS == 64:
        return decode_float8(values).to(tl.bfloat16)
    else:
        return values


@triton.jit
def scaled(
    acc, weight, outs, out_mask, M: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr,
    TURN: tl.constexpr = 0, TURNS: tl.constexpr = 1,
):  # fmt: skip
    """[outs, rows]: the sums times the scales of float8 weights [M, K], which stand behind all tiles."""
    if COLUMNS == 64:
        TILES: tl.constexpr = (M + 7) // 8 * TURNS * ((K + COLUMNS - 1) // COLUMNS)
        scales = (weight + tl.full([], TILES, tl.int64) * 512).to(tl.pointer_type(tl.float32))
        return acc * tl.load(scales + (outs // 8 * TURNS + TURN) * 8 + outs % 8, mask=out_mask, other=0)[:, None]
    else:
        return acc


@triton.jit
def row_tile(z, rows, row_mask, k, K: tl.constexpr, K_TILE: tl.constexpr, COLUMNS: tl.constexpr):
    """[k, rows] of the prepared rows, for k as the memory of the weights counts."""
    if COLUMNS == 64:
        # A tile of float8 has its columns in an order of its own (kernels/common/weight_tiles.cuh).
        k = k // 64 * 64 + k // 8 % 2 * 32 + k // 16 % 4 * 8 + k // 4 % 2 * 4 + k % 2 * 2 + k // 2 % 2
    at = z + rows.to(tl.int64)[None, :] * K + k[:, None]
    if K % K_TILE == 0:
        return tl.load(at, mask=row_mask[None, :], other=0)
    else:
        return tl.load(at, mask=row_mask[None, :] & (k < K)[:, None], other=0)


def prepared(p, scratch, x, weight_dtype: str, num_rows: int, k: int, row_of=None):
    """(launch, z): RMSNorm of the rows into scratch, in the type that meets the weights."""
    z = scratch((num_rows, k), "float32" if weight_dtype == "float32" else "bfloat16")
    args = {"x": x, "row_of": row_of, "norm_weight": p.norm_weight, "z": z, "eps": p.eps}
    return Launch(prepare_row, (num_rows,), args, {"K": k, "BLOCK": power_of_2(k)}), z


def tile_of_rows(num_rows: int) -> int:
    return min(max(power_of_2(num_rows), 16), 128)


def tiling(dtype: str, k: int, rows: int, weights: int = 1, operands: int = 1) -> tuple[dict[str, int], int]:
    """(constants of a product's tiles, stages of its loop) for so many tiles of weights and of rows at a time."""
    columns = TILE_ROW_BYTES // ITEM_BYTES[dtype]
    k_tile = min(K_TILE[dtype], max(power_of_2(k), columns))
    a_stage = k_tile * (weights * OUTS * ITEM_BYTES[dtype] + operands * rows * (4 if dtype == "float32" else 2))
    return {"K": k, "K_TILE": k_tile, "COLUMNS": columns, "OUTS": OUTS, "ROWS": rows}, stages(a_stage)


def out_tiles(outs: int) -> int:
    return tiles(outs, OUTS)
