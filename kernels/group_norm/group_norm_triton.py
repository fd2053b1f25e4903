"""Group normalisation in Triton: moments of blocks of positions, then merging and normalising in one launch.

A block's moments are taken around its own mean (Chan et al. 1979), so a mean far from zero costs no digits. How many
positions a block has follows from the channels of a group, never from the batch (contract C2).
"""

import triton
import triton.language as tl

from simplear_engine.kernels.triton_launch import Launch, fields, power_of_2, tiles

VALUES = 8192  # of a block


@triton.jit
def moments(
    x, mean, square, positions,
    C: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    block, group, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position, c = block * POSITIONS + tl.arange(0, POSITIONS), tl.arange(0, CHANNELS)
    mask = (position < positions)[:, None] & (c < C // GROUPS)[None, :]
    at = (image.to(tl.int64) * positions + position)[:, None] * C + group * (C // GROUPS) + c[None, :]
    values = tl.load(x + at, mask=mask, other=0).to(tl.float32)
    count = (tl.minimum(positions - block * POSITIONS, POSITIONS) * (C // GROUPS)).to(tl.float32)
    average = tl.sum(tl.sum(values, axis=1), axis=0) / count
    away = tl.where(mask, values - average, 0.0)
    slot = (image * GROUPS + group) * tl.num_programs(0) + block
    tl.store(mean + slot, average)
    tl.store(square + slot, tl.sum(tl.sum(away * away, axis=1), axis=0))


@triton.jit
def normalise(
    x, mean, square, weight, bias, y, positions, num_blocks, eps,
    C: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr, BLOCKS: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    block, group, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks = tl.arange(0, BLOCKS)
    slots, is_block = (image * GROUPS + group) * num_blocks + blocks, blocks < num_blocks
    means = tl.load(mean + slots, mask=is_block, other=0)
    counts = tl.minimum(positions - blocks * POSITIONS, POSITIONS) * (C // GROUPS)
    counts = tl.where(is_block, counts, 0).to(tl.float32)
    total = tl.full([], C // GROUPS, tl.float32) * positions  # which may be a constant
    average = tl.sum(means * counts, axis=0) / total
    away = means - average
    squares = tl.sum(tl.load(square + slots, mask=is_block, other=0) + counts * away * away, axis=0)
    scale = tl.div_rn(1.0, tl.sqrt_rn(squares / total + eps))

    position, c = block * POSITIONS + tl.arange(0, POSITIONS), tl.arange(0, CHANNELS)
    is_channel = c < C // GROUPS
    mask = (position < positions)[:, None] & is_channel[None, :]
    channel = group * (C // GROUPS) + c
    at = (image.to(tl.int64) * positions + position)[:, None] * C + channel[None, :]
    values = tl.load(x + at, mask=mask, other=0).to(tl.float32)
    factor = scale * tl.load(weight + channel, mask=is_channel, other=0)
    values = (values - average) * factor[None, :] + tl.load(bias + channel, mask=is_channel, other=0)[None, :]
    if SILU:
        values = values / (1 + tl.exp(-values))
    tl.store(y + at, values.to(y.dtype.element_ty), mask=mask)


def launches(p, scratch):
    channels = power_of_2(p.channels // p.groups)
    positions = p.height * p.width
    of_block = max(VALUES // channels, 1)
    num_blocks = tiles(positions, of_block)
    mean, square = (scratch((p.batch, p.groups, num_blocks), "float32") for _ in range(2))
    grid = (num_blocks, p.groups, p.batch)
    shape = {"C": p.channels, "GROUPS": p.groups, "CHANNELS": channels, "POSITIONS": of_block}
    found = {"mean": mean, "square": square, "positions": positions}
    yield Launch(moments, grid, {"x": p.x, **found}, shape)
    yield Launch(
        normalise,
        grid,
        {**found, **fields(p, "x", "weight", "bias", "y", "eps"), "num_blocks": num_blocks},
        {**shape, "BLOCKS": power_of_2(num_blocks), "SILU": bool(p.silu)},
    )
