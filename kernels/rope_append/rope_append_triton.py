"""Rotary embedding and append to the paged cache in Triton: one program for each token and head."""

import triton
import triton.language as tl

from simplear_engine.kernels.float8_triton import encode as encode_float8
from simplear_engine.kernels.rope_append import BLOCK_SIZE
from simplear_engine.kernels.triton_launch import Launch, fields, power_of_2


@triton.jit
def code_of(x, divisor, LARGEST: tl.constexpr):
    """x / divisor, rounded to nearest even."""
    quotient = tl.minimum(tl.maximum(tl.div_rn(x, divisor), -LARGEST), LARGEST)
    if LARGEST == 448:
        return encode_float8(quotient)
    else:
        return ((quotient + 12582912.0) - 12582912.0).to(tl.int8)  # so large a number has no digits behind the point


@triton.jit
def append(cache, at_a, at_b, scale, at_scale, a, b, mask):
    if scale is None:
        tl.store(cache + at_a, a.to(cache.dtype.element_ty), mask=mask)
        tl.store(cache + at_b, b.to(cache.dtype.element_ty), mask=mask)
    else:
        largest = tl.maximum(tl.max(tl.abs(a), axis=0), tl.max(tl.abs(b), axis=0))
        finite = (tl.abs(a) < float("inf")) & (tl.abs(b) < float("inf"))
        is_finite = tl.sum(tl.where(finite, 0, 1), axis=0) == 0
        LARGEST: tl.constexpr = 448.0 if cache.dtype.element_ty == tl.uint8 else 127.0
        step = tl.div_rn(largest, LARGEST)
        divisor = tl.where(is_finite & (step > 0), step, 1.0)
        tl.store(cache + at_a, code_of(tl.where(is_finite, a, 0.0), divisor, LARGEST), mask=mask)
        tl.store(cache + at_b, code_of(tl.where(is_finite, b, 0.0), divisor, LARGEST), mask=mask)
        tl.store(scale + at_scale, tl.where(is_finite, step, float("nan")))


@triton.jit
def rope_append(
    qkv, cos_sin, positions, slot_mapping, q, k_cache, v_cache, k_scale, v_scale,
    H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, HALF: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """A row without a slot (-1) is not appended: a step may be padded to its graph's size."""
    n, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, HALF)
    mask = i < E // 2
    source = qkv + (n * (H + 2 * G) + head) * E
    a = tl.load(source + i, mask=mask, other=0)
    b = tl.load(source + E // 2 + i, mask=mask, other=0)
    if head < H + G:
        angle = cos_sin + tl.load(positions + n).to(tl.int64) * E
        cos = tl.load(angle + i, mask=mask, other=0)
        sin = tl.load(angle + E // 2 + i, mask=mask, other=0)
        a, b = a * cos - b * sin, b * cos + a * sin
    if head < H:
        target = q + (n * H + head) * E
        tl.store(target + i, a, mask=mask)
        tl.store(target + E // 2 + i, b, mask=mask)
    else:
        token_slot = tl.load(slot_mapping + n)
        if token_slot >= 0:
            block, offset = (token_slot // BLOCK_SIZE).to(tl.int64), token_slot % BLOCK_SIZE
            if head < H + G:
                entry = block * G + (head - H)
                at = (entry * E + i) * BLOCK_SIZE + offset
                at_scale = entry * BLOCK_SIZE + offset
                append(k_cache, at, at + E // 2 * BLOCK_SIZE, k_scale, at_scale, a, b, mask)
            else:
                entry = block * G + (head - H - G)
                at_scale = entry * BLOCK_SIZE + offset
                at = at_scale * E + i
                append(v_cache, at, at + E // 2, v_scale, at_scale, a, b, mask)


def launches(p, scratch):
    yield Launch(
        rope_append,
        (p.num_tokens, p.num_heads + 2 * p.num_kv_heads),
        fields(p, "qkv", "cos_sin", "positions", "slot_mapping", "q", "k_cache", "v_cache", "k_scale", "v_scale"),
        {
            "H": p.num_heads,
            "G": p.num_kv_heads,
            "E": p.head_dim,
            "HALF": power_of_2(p.head_dim // 2),
            "BLOCK_SIZE": BLOCK_SIZE,
        },
        num_warps=1,
    )
