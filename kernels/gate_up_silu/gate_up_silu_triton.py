"""RMSNorm, gate and up projection and SwiGLU in Triton: both sums of a tile of outputs in one loop over k."""

import triton
import triton.language as tl

from simplear_engine.kernels import float8
from simplear_engine.kernels.product_triton import (
    out_tiles,
    prepared,
    row_tile,
    scaled,
    tile_of_rows,
    tiling,
    weight_tile,
)
from simplear_engine.kernels.triton_launch import Launch, fields, tiles


@triton.jit
def gate_and_up(
    x, weight, y, num_rows,
    I: tl.constexpr, K: tl.constexpr, OUTS: tl.constexpr, ROWS: tl.constexpr, K_TILE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    outs = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    row_mask, out_mask = rows < num_rows, outs < I
    gate = tl.zeros([OUTS, ROWS], tl.float32)
    up = tl.zeros([OUTS, ROWS], tl.float32)
    for k0 in range(0, K, K_TILE):
        k = k0 + tl.arange(0, K_TILE)
        of_gate = weight_tile(weight, outs, out_mask, k, K, K_TILE, COLUMNS, 0, 2)
        of_up = weight_tile(weight, outs, out_mask, k, K, K_TILE, COLUMNS, 1, 2)
        z = row_tile(x, rows, row_mask, k, K, K_TILE, COLUMNS)
        gate = tl.dot(of_gate, z, gate, input_precision="ieee")
        up = tl.dot(of_up, z, up, input_precision="ieee")
    gate = scaled(gate, weight, outs, out_mask, I, K, COLUMNS, 0, 2)
    up = scaled(up, weight, outs, out_mask, I, K, COLUMNS, 1, 2)
    at = y + rows.to(tl.int64)[None, :] * I + outs[:, None]
    tl.store(at, (gate / (1 + tl.exp(-gate)) * up).to(y.dtype.element_ty), mask=row_mask[None, :] & out_mask[:, None])


def launches(p, scratch):
    n, i, k = p.num_rows, p.intermediate_size, p.hidden_size
    prepare, z = prepared(p, scratch, p.x, p.weight.dtype, n, k)
    yield prepare
    # Two sums of each row: with float8 to be widened beside 128 rows of them, registers run out.
    rows = min(tile_of_rows(n), 64) if p.weight.dtype == float8.NAME else tile_of_rows(n)
    constants, stages = tiling(p.weight.dtype, k, rows, weights=2)
    yield Launch(
        gate_and_up,
        (tiles(n, constants["ROWS"]), out_tiles(i)),
        {"x": z, "weight": p.weight, **fields(p, "y", "num_rows")},
        {**constants, "I": i},
        num_stages=stages,
    )
