"""Attention among all positions of an image in Triton, with an online softmax (Milakov & Gimelshein 2018).

A head of 512 channels is too wide to keep whole rows of it at hand, so a program owns a tile of queries and a slice of the
value's channels, and scores are computed anew for each slice: keys come from cache, and the sums that are carried along
stay in registers. Tiles of keys are taken in ascending order (contract C2).
"""

import triton
import triton.language as tl

from simplear_engine.kernels.product_triton import ITEM_BYTES
from simplear_engine.kernels.triton_launch import Launch, fields, power_of_2, stages, tiles

QUERIES = 64
KEYS = 64
WIDTH = 128  # channels of a value at a time
CHANNELS = {"float32": 32, "bfloat16": 64}  # of queries and keys, at a time


@triton.jit
def attend(
    qkv, residual, y, positions, scale,
    C: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64) * positions
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    out = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_query, is_out = query < positions, out < C
    at_query = (image + query) * (3 * C)
    acc = tl.zeros([QUERIES, WIDTH], tl.float32)
    mass = tl.zeros([QUERIES], tl.float32)
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    for first in range(0, positions, KEYS):
        key = first + tl.arange(0, KEYS)
        is_key = key < positions
        at_key = (image + key) * (3 * C)
        scores = tl.zeros([QUERIES, KEYS], tl.float32)
        for c0 in range(0, C, CHANNELS):
            c = c0 + tl.arange(0, CHANNELS)
            q = tl.load(qkv + at_query[:, None] + c[None, :], mask=is_query[:, None] & (c < C)[None, :], other=0)
            k = tl.load(qkv + C + at_key[None, :] + c[:, None], mask=is_key[None, :] & (c < C)[:, None], other=0)
            scores = tl.dot(q, k, scores, input_precision="ieee")
        scores = tl.where(is_key[None, :], scores * scale, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        kept = tl.exp(top - new_top)
        weights = tl.exp(scores - new_top[:, None])
        mass = mass * kept + tl.sum(weights, axis=1)
        v = tl.load(qkv + 2 * C + at_key[:, None] + out[None, :], mask=is_key[:, None] & is_out[None, :], other=0)
        acc = tl.dot(weights.to(v.dtype), v, acc * kept[:, None], input_precision="ieee")
        top = new_top
    at = (image + query)[:, None] * C + out[None, :]
    mask = is_query[:, None] & is_out[None, :]
    result = acc / mass[:, None] + tl.load(residual + at, mask=mask, other=0).to(tl.float32)
    tl.store(y + at, result.to(y.dtype.element_ty), mask=mask)


def launches(p, scratch):
    positions, c = p.height * p.width, p.channels
    width, channels = min(WIDTH, max(power_of_2(c), 16)), min(CHANNELS[p.qkv.dtype], max(power_of_2(c), 16))
    yield Launch(
        attend,
        (tiles(positions, QUERIES), tiles(c, width), p.batch),
        {**fields(p, "qkv", "residual", "y", "scale"), "positions": positions},
        {"C": c, "QUERIES": QUERIES, "KEYS": KEYS, "WIDTH": width, "CHANNELS": channels},
        num_warps=8,
        num_stages=stages(channels * (QUERIES + KEYS) * ITEM_BYTES[p.qkv.dtype], most=3),
    )
