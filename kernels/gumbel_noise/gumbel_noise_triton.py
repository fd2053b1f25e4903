"""The noise of guided sampling in Triton, bit for bit as noise.py computes it."""

import triton
import triton.language as tl

from simplear_engine.kernels.triton_launch import Launch, fields, tiles

CODES = 1024  # of a program


@triton.jit
def philox(seed, position, c0):
    """The four words of Philox4x32-10 for key `seed` and counters (c0, position, 0, 0)."""
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    c0 = c0.to(tl.uint32)
    c1 = (position + tl.zeros_like(c0)).to(tl.uint32)
    c2, c3 = tl.zeros_like(c0), tl.zeros_like(c0)
    for _ in tl.static_range(10):
        p0, p1 = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0, c1 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, p1.to(tl.uint32)
        c2, c3 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1, p0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def log_of_parts(f, e):
    f2 = f * f
    p = f * 7.0376836292e-2 - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    y = p * f * f2
    y = y + e * -2.12194440e-4
    y = y - f2 * 0.5
    return (f + y) + e * 0.693359375


@triton.jit
def split(x):
    bits = x.to(tl.int32, bitcast=True)
    exponent = ((bits + (0x3F800000 - 0x3F3504F3)) >> 23) - 127
    return (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0, exponent.to(tl.float32)


@triton.jit
def unit_interval(bits):
    high, low = (bits >> 8).to(tl.int32).to(tl.float32), (bits & 255).to(tl.int32).to(tl.float32)
    return (high * 256.0 + (low + 0.5)) * 2.3283064365386963e-10


@triton.jit
def gumbel(bits):
    v, w = unit_interval(bits), unit_interval(bits ^ 0xFFFFFFFF)
    f, e = split(w)
    near_one = v < 0.25
    exponential = -log_of_parts(tl.where(near_one, -v, f), tl.where(near_one, 0.0, e))
    f, e = split(exponential)
    return -log_of_parts(f, e)


@triton.jit
def noise_of(seed, position, quads):
    """[..., 4 * len(quads)]: the noise of codes 4 q .. 4 q + 3 for each q in order; the last axis is that of codes."""
    a, b, c, d = philox(seed, position, quads)
    return tl.interleave(tl.interleave(gumbel(a), gumbel(c)), tl.interleave(gumbel(b), gumbel(d)))


@triton.jit
def write_noise(seed, position, noise, V: tl.constexpr, CODES: tl.constexpr):
    p, first = tl.program_id(1), tl.program_id(0) * CODES
    values = noise_of(tl.load(seed + p), tl.load(position + p), first // 4 + tl.arange(0, CODES // 4))
    codes = first + tl.arange(0, CODES)
    tl.store(noise + p.to(tl.int64) * V + codes, values, mask=codes < V)


def launches(p, scratch):
    yield Launch(
        write_noise,
        (tiles(p.num_codes, CODES), p.num_rows),
        fields(p, "seed", "position", "noise"),
        {"V": p.num_codes, "CODES": CODES},
    )
