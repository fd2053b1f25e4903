"""Paged attention in Triton: chunks of 128 keys, each as if it were the whole context, then merged in order.

A program takes one chunk, one KV head and a tile of queries of one sequence, with all query heads that share the KV head:
7 heads and 4 queries fill 28 of 32 columns. Keys stand on the left of the product and queries on its right, and sums over
keys are products as well, with ones: so nothing depends on how many queries share a tile (contract C2).

Keys and values in bfloat16, int8 or float8 are exact as bfloat16. Queries and softmax weights are not: they are cut into two
bfloat16 parts, and into three where `out` is float32, and the products of the parts are added.
"""

import triton
import triton.language as tl

from simplear_engine.kernels.float8_triton import decode as decode_float8
from simplear_engine.kernels.rope_append import BLOCK_SIZE
from simplear_engine.kernels.triton_launch import Launch, fields, power_of_2, tiles

CHUNK = 128  # keys
COLUMNS = 32  # heads x queries of a tile in a step with drafts or prompts: with 64, sm_80 runs out of registers
FEW_COLUMNS = 16  # the same where each sequence brings one query


@triton.jit
def dot_of_parts(a, b, acc, PARTS: tl.constexpr):
    """acc + a @ b, where a is exact in its type and b is float32."""
    if PARTS == 0:
        return tl.dot(a, b, acc, input_precision="ieee")
    else:
        for part in tl.static_range(PARTS):
            rounded = b.to(tl.bfloat16)
            acc = tl.dot(a, rounded, acc)
            if part + 1 < PARTS:
                b = b - rounded.to(tl.float32)
        return acc


@triton.jit
def as_bfloat16(cached):
    """Exactly; bytes without a sign are those of float8."""
    if cached.dtype == tl.uint8:
        return decode_float8(cached).to(tl.bfloat16)
    else:
        return cached.to(tl.float32).to(tl.bfloat16)


@triton.jit
def attend_chunk(
    q, k_cache, v_cache, k_scale, v_scale, query_start_loc, context_lens, block_table, sums, largest, total, num_seqs,
    scale, max_blocks_per_seq,
    H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, DIM: tl.constexpr, CHUNK: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr, SEQS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    tile, group, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    # Each sequence has one tile more than it may need, so that the first one of a sequence follows from the table alone.
    seqs = tl.arange(0, SEQS)
    starts = tl.load(query_start_loc + seqs, mask=seqs < num_seqs, other=0)
    first_tiles = tl.where(seqs < num_seqs, starts // QUERIES + seqs, tile + 1)
    s = tl.sum((first_tiles <= tile).to(tl.int32), axis=0) - 1
    start, end = tl.load(query_start_loc + s), tl.load(query_start_loc + s + 1)
    first = start + (tile - (start // QUERIES + s)) * QUERIES
    context = tl.load(context_lens + s)
    last_position = context - end + tl.minimum(first + QUERIES, end) - 1
    if (first < end) & (chunk * CHUNK <= last_position):
        per_group = H // G
        column = tl.arange(0, COLUMNS)
        row = first + column // per_group
        head = group * per_group + column % per_group
        is_column = (column < QUERIES * per_group) & (row < end)
        position = context - end + row
        key = chunk * CHUNK + tl.arange(0, CHUNK)
        is_key = key < context
        d = tl.arange(0, DIM)

        blocks = tl.load(block_table + s * max_blocks_per_seq + key // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
        entry, offset = blocks * G + group, key % BLOCK_SIZE
        at_keys = (entry * E * BLOCK_SIZE + offset)[:, None] + d[None, :] * BLOCK_SIZE
        keys = tl.load(k_cache + at_keys, mask=is_key[:, None] & (d < E)[None, :], other=0)
        at_queries = (row.to(tl.int64) * H + head) * E
        queries = tl.load(q + at_queries[None, :] + d[:, None], mask=is_column[None, :] & (d < E)[:, None], other=0)
        if PARTS > 0:
            keys = as_bfloat16(keys)
        scores = dot_of_parts(keys, queries, tl.zeros([CHUNK, COLUMNS], tl.float32), PARTS) * scale
        if k_scale is not None:
            scores *= tl.load(k_scale + entry * BLOCK_SIZE + offset, mask=is_key, other=0)[:, None]
        is_seen = (key[:, None] <= position[None, :]) & is_key[:, None] & is_column[None, :]
        scores = tl.where(is_seen, scores, float("-inf"))
        # A query that sees nothing of this chunk gets weights of 0, whatever it subtracts.
        top = tl.max(scores, axis=0)
        weights = tl.exp(scores - tl.where(top > float("-inf"), top, 0.0)[None, :])
        ones = tl.full([16, CHUNK], 1.0, tl.float32)
        if PARTS > 0:
            ones = ones.to(tl.bfloat16)
        mass = tl.max(dot_of_parts(ones, weights, tl.zeros([16, COLUMNS], tl.float32), PARTS), axis=0)

        if v_scale is not None:
            value_scale = tl.load(v_scale + entry * BLOCK_SIZE + offset, mask=is_key, other=0)
            weights = tl.where(is_seen, weights * value_scale[:, None], 0.0)
        at_values = ((entry * BLOCK_SIZE + offset) * E)[None, :] + d[:, None]
        values = tl.load(v_cache + at_values, mask=is_key[None, :] & (d < E)[:, None], other=0)
        if PARTS > 0:
            values = as_bfloat16(values)
        if (chunk + 1) * CHUNK > context - end + first + 1:
            # Not every query sees all of these keys. A weight of zero times a value that is no number would spoil those that
            # do not: the value becomes zero, and NaN goes to the sums of those that do.
            wide = values.to(tl.float32)
            is_flawed = tl.max((wide - wide != 0).to(tl.int32), axis=0) > 0
            values = tl.where(is_flawed[None, :], 0.0, values).to(values.dtype)
            num_flaws = tl.sum((is_seen & is_flawed[:, None]).to(tl.int32), axis=0)
            mass = tl.where(num_flaws > 0, float("nan"), mass)
        acc = dot_of_parts(values, weights, tl.zeros([DIM, COLUMNS], tl.float32), PARTS)

        at = (row.to(tl.int64) * H + head) * tl.num_programs(2) + chunk
        tl.store(sums + at[None, :] * E + d[:, None], acc, mask=is_column[None, :] & (d < E)[:, None])
        tl.store(largest + at, top, mask=is_column)
        tl.store(total + at, mass, mask=is_column)


@triton.jit
def merge_chunks(
    sums, largest, total, query_start_loc, context_lens, out, num_seqs, num_chunks,
    H: tl.constexpr, E: tl.constexpr, DIM: tl.constexpr, CHUNK: tl.constexpr, SEQS: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    seqs = tl.arange(0, SEQS)
    ends = tl.load(query_start_loc + 1 + seqs, mask=seqs < num_seqs, other=row + 1)
    s = tl.sum((ends <= row).to(tl.int32), axis=0)
    # A row that belongs to no sequence is left as it is.
    if s < num_seqs:
        num_keys = tl.load(context_lens + s) - (tl.load(query_start_loc + s + 1) - row - 1)
        d = tl.arange(0, DIM)
        acc = tl.zeros([DIM], tl.float32)
        mass = tl.full([], 0.0, tl.float32)
        top = tl.full([], float("-inf"), tl.float32)
        at = (row.to(tl.int64) * H + head) * num_chunks
        for _ in range(0, tl.cdiv(num_keys, CHUNK)):
            chunk_top = tl.load(largest + at)
            new_top = tl.maximum(top, chunk_top)
            kept, added = tl.exp(top - new_top), tl.exp(chunk_top - new_top)
            acc = acc * kept + tl.load(sums + at * E + d, mask=d < E, other=0) * added
            mass = mass * kept + tl.load(total + at) * added
            top = new_top
            at += 1
        tl.store(out + (row.to(tl.int64) * H + head) * E + d, (acc / mass).to(out.dtype.element_ty), mask=d < E)


def launches(p, scratch):
    h, g, e = p.num_heads, p.num_kv_heads, p.head_dim
    if p.num_seqs == 0:
        return
    columns = max(FEW_COLUMNS if p.num_tokens <= p.num_seqs else COLUMNS, power_of_2(h // g))
    queries = columns // (h // g)
    num_chunks = tiles(p.max_blocks_per_seq * BLOCK_SIZE, CHUNK)
    found = {
        "sums": scratch((p.num_tokens, h, num_chunks, e), "float32"),
        "largest": scratch((p.num_tokens, h, num_chunks), "float32"),
        "total": scratch((p.num_tokens, h, num_chunks), "float32"),
    }
    heads = {"H": h, "E": e, "DIM": max(power_of_2(e), 16), "CHUNK": CHUNK, "SEQS": power_of_2(p.num_seqs)}
    parts = 0 if p.k_cache.dtype == "float32" else 3 if p.out.dtype == "float32" else 2
    yield Launch(
        attend_chunk,
        (p.num_tokens // queries + p.num_seqs, g, num_chunks),
        {
            **found,
            **fields(
                p, "q", "k_cache", "v_cache", "k_scale", "v_scale", "query_start_loc", "context_lens", "block_table"
            ),
            **fields(p, "num_seqs", "scale", "max_blocks_per_seq"),
        },
        {**heads, "G": g, "BLOCK_SIZE": BLOCK_SIZE, "QUERIES": queries, "COLUMNS": columns, "PARTS": parts},
        num_warps=4 if columns == FEW_COLUMNS else 8,
    )
    yield Launch(
        merge_chunks,
        (p.num_tokens, h),
        {**found, **fields(p, "query_start_loc", "context_lens", "out", "num_seqs"), "num_chunks": num_chunks},
        heads,
        num_warps=1,
    )
