"""Matrix product in Triton, after an optional RMSNorm.

A narrow matrix has too few tiles of outputs to keep a GPU busy, so a long sum is cut at fixed positions of k into spans,
which other programs add up; a second launch adds the spans in order. Where the cuts are is a matter of the matrix alone.
"""

import triton
import triton.language as tl

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

SPAN = 1024  # of k, where a sum is cut
WIDE = 8192  # outputs that keep a GPU busy without cuts


@triton.jit
def store(acc, bias, y, at, mask, outs, out_mask, ACCUMULATE: tl.constexpr):
    if bias is not None:
        acc += tl.load(bias + outs, mask=out_mask, other=0)[:, None]
    if ACCUMULATE:
        acc += tl.load(y + at, mask=mask, other=0)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=mask)


@triton.jit
def multiply(
    x, weight, bias, y, partial, num_rows,
    M: tl.constexpr, K: tl.constexpr, SPAN: tl.constexpr, ACCUMULATE: tl.constexpr,
    OUTS: tl.constexpr, ROWS: tl.constexpr, K_TILE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of y; or, where there is `partial`, a tile's sum over one span of k."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    outs = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    span = tl.program_id(2)
    row_mask, out_mask = rows < num_rows, outs < M
    acc = tl.zeros([OUTS, ROWS], tl.float32)
    for k0 in range(span * SPAN, min(span * SPAN + SPAN, K), K_TILE):
        k = k0 + tl.arange(0, K_TILE)
        w = weight_tile(weight, outs, out_mask, k, K, K_TILE, COLUMNS)
        acc = tl.dot(w, row_tile(x, rows, row_mask, k, K, K_TILE, COLUMNS).to(w.dtype), acc, input_precision="ieee")
    acc = scaled(acc, weight, outs, out_mask, M, K, COLUMNS)
    at = rows.to(tl.int64)[None, :] * M + outs[:, None]
    mask = row_mask[None, :] & out_mask[:, None]
    if partial is None:
        store(acc, bias, y, at, mask, outs, out_mask, ACCUMULATE)
    else:
        tl.store(partial + span.to(tl.int64) * num_rows * M + at, acc, mask=mask)


@triton.jit
def add_spans(
    partial, bias, y, num_rows, M: tl.constexpr, NUM_SPANS: tl.constexpr, ACCUMULATE: tl.constexpr, OUTS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    outs = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    out_mask = outs < M
    at = row * M + outs
    acc = tl.zeros([OUTS], tl.float32)
    for span in tl.static_range(NUM_SPANS):
        # num_rows may be a constant, which has no .to().
        begin = tl.full([], span * M, tl.int64) * num_rows
        acc += tl.load(partial + begin + at, mask=out_mask, other=0)
    if bias is not None:
        acc += tl.load(bias + outs, mask=out_mask, other=0)
    if ACCUMULATE:
        acc += tl.load(y + at, mask=out_mask, other=0)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=out_mask)


def launches(p, scratch):
    n, m, k = p.num_rows, p.out_features, p.in_features
    x = p.x
    if p.norm_weight is not None:
        prepare, x = prepared(p, scratch, p.x, p.weight.dtype, n, k)
        yield prepare
    constants, stages = tiling(p.weight.dtype, k, tile_of_rows(n))
    epilogue = {"M": m, "ACCUMULATE": bool(p.accumulate)}
    spans = 1 if m >= WIDE else tiles(k, SPAN)
    partial = scratch((spans, n, m), "float32") if spans > 1 else None
    yield Launch(
        multiply,
        (tiles(n, constants["ROWS"]), out_tiles(m), spans),
        {
            "x": x,
            "weight": p.weight,
            "partial": partial,
            **fields(p, "bias", "y", "num_rows"),
        },
        {**constants, **epilogue, "SPAN": SPAN if spans > 1 else k},
        num_stages=stages,
    )
    if partial is not None:
        yield Launch(
            add_spans,
            (n, tiles(m, 128)),
            {"partial": partial, **fields(p, "bias", "y", "num_rows")},
            {**epilogue, "NUM_SPANS": spans, "OUTS": 128},
        )
