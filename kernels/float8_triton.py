"""float8_e4m3 in Triton, for memory that holds its bits as uint8; see float8.py."""

import triton
import triton.language as tl


@triton.jit
def decode(codes):
    """float32, exactly. e4m3 has the layout of a small float32: moved into place, only the offset of its exponent is wrong,
    by 120. Numbers only, a NaN is read as 480."""
    bits = ((codes.to(tl.uint32) & 0x80) << 24) | ((codes.to(tl.uint32) & 0x7F) << 20)
    return bits.to(tl.float32, bitcast=True) * 1.329227995784916e36


@triton.jit
def encode(values):
    """uint8 of float32 of magnitude 448 at most, rounded to nearest even."""
    bits = values.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # 23 bits of mantissa become 3, and the exponent's bias goes from 127 to 7; below 2^-6 there are steps of 2^-9, and
    # so large a number as is added to those has no digits behind the point.
    codes = ((magnitude + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960
    steps = ((tl.abs(values) * 512.0 + 12582912.0) - 12582912.0).to(tl.uint32)
    return (tl.where(magnitude < 0x3C800000, steps, codes) | ((bits >> 24) & 0x80)).to(tl.uint8)
