"""Convolution of channel-last images in Triton, as an implicit matrix product.

A program computes a tile of output channels at a tile of pixels, which run on across images. Its loop goes over the taps and,
inside a tap, over channels; what a tap sees outside the image is masked and costs nothing.
"""

import triton
import triton.language as tl

from simplear_engine.kernels.product_triton import ITEM_BYTES
from simplear_engine.kernels.triton_launch import Launch, fields, power_of_2, stages, tiles

PIXELS = 128
CHANNELS = {"float32": 32, "bfloat16": 64}  # of the input, at a time


@triton.jit
def convolve(
    x, weight, bias, residual, y, batch, height, width, out_height, out_width, pad,
    C: tl.constexpr, M: tl.constexpr, R: tl.constexpr, STRIDE: tl.constexpr, CORNERS: tl.constexpr,
    OUTS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    STEP: tl.constexpr = 2 if CORNERS == 4 else 1
    outs = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    corner = tl.program_id(2)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    # Where the pixels stand: i, j count in steps of a corner's own grid.
    rows, columns = out_height // STEP, out_width // STEP
    image, i, j = pixel // (rows * columns), pixel // columns % rows, pixel % columns
    is_pixel, is_out = pixel < batch * rows * columns, outs < M
    pad_row, pad_column = pad, pad
    if CORNERS == 4:
        pad_row, pad_column = 1 - corner // 2, 1 - corner % 2
    acc = tl.zeros([OUTS, PIXELS], tl.float32)
    CHUNKS: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    for part in range(0, R * R * CHUNKS):
        tap = part // CHUNKS
        c = part % CHUNKS * CHANNELS + tl.arange(0, CHANNELS)
        row, column = i * STRIDE + tap // R - pad_row, j * STRIDE + tap % R - pad_column
        is_inside = is_pixel & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        at_x = ((image.to(tl.int64) * height + row) * width + column) * C
        seen = tl.load(x + at_x[None, :] + c[:, None], mask=is_inside[None, :] & (c < C)[:, None], other=0)
        at_weight = (((corner * M + outs) * (R * R) + tap) * C)[:, None] + c[None, :]
        w = tl.load(weight + at_weight, mask=is_out[:, None] & (c < C)[None, :], other=0)
        acc = tl.dot(w, seen, acc, input_precision="ieee")
    acc += tl.load(bias + outs, mask=is_out, other=0)[:, None]
    out_row, out_column = i * STEP + corner // 2, j * STEP + corner % 2
    at = ((image.to(tl.int64) * out_height + out_row) * out_width + out_column)[None, :] * M + outs[:, None]
    mask = is_pixel[None, :] & is_out[:, None]
    if residual is not None:
        acc += tl.load(residual + at, mask=mask, other=0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=mask)


def launches(p, scratch):
    m, step = p.out_channels, 2 if p.corners == 4 else 1
    pixels = p.batch * (p.out_height // step) * (p.out_width // step)
    outs = 128 if m > 64 else 64
    channels = min(CHANNELS[p.x.dtype], max(power_of_2(p.in_channels), 16))
    yield Launch(
        convolve,
        (tiles(pixels, PIXELS), tiles(m, outs), p.corners),
        {
            **fields(p, "x", "bias", "residual", "y", "batch", "height", "width", "out_height", "out_width", "pad"),
            "weight": p.weight,
        },
        {
            **{"C": p.in_channels, "M": m, "R": p.kernel, "STRIDE": p.stride, "CORNERS": p.corners},
            **{"OUTS": outs, "PIXELS": PIXELS, "CHANNELS": channels},
        },
        num_warps=8 if outs == 128 else 4,
        num_stages=stages(channels * (outs + PIXELS) * ITEM_BYTES[p.x.dtype]),
    )
