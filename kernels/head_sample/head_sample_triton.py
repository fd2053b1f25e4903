"""The end of a step in Triton: norm, visual head, guidance, noise and one code per draw.

Three launches follow the norm. `draw_from_tiles` multiplies a tile of codes with the rows of a tile of draws, conditional and
unconditional side by side, and keeps of it what a draw needs: its best score, and the sum that the log-probability
divides by. `pick` decides between the tiles; for a draw that top-k or top-p filter, it finds the allowed set first.
`score_rows` writes the logits of rows that no draw refers to, and returns at once where there are none.
"""

import triton
import triton.language as tl

from simplear_engine.kernels.gumbel_noise.gumbel_noise_triton import noise_of
from simplear_engine.kernels.product_triton import (
    out_tiles,
    prepared,
    row_tile,
    scaled,
    tiling,
    weight_tile,
)
from simplear_engine.kernels.triton_launch import Launch, fields, power_of_2, tiles

# Draws of a tile, however few there are: sums over the codes of a tile are done in an order that depends on its shape.
DRAWS = 32
CODES = 2048  # of the vocabulary at a time, where it is searched


@triton.jit
def draw_from_tiles(
    z, weight, cond_row, uncond_row, guidance_scale, temperature, top_k, top_p, seed, position, guided,
    tile_score, tile_code, tile_logit, tile_max, tile_sum, num_draws,
    V: tl.constexpr, K: tl.constexpr, OUTS: tl.constexpr, ROWS: tl.constexpr, K_TILE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    draws = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tile = tl.program_id(1)
    codes = tile * OUTS + tl.arange(0, OUTS)
    is_draw, is_code = draws < num_draws, codes < V
    cond = tl.load(cond_row + draws, mask=is_draw, other=0)
    uncond = tl.load(uncond_row + draws, mask=is_draw, other=-1)
    is_guided = uncond >= 0
    c = tl.zeros([OUTS, ROWS], tl.float32)
    u = tl.zeros([OUTS, ROWS], tl.float32)
    for k0 in range(0, K, K_TILE):
        k = k0 + tl.arange(0, K_TILE)
        w = weight_tile(weight, codes, is_code, k, K, K_TILE, COLUMNS)
        c = tl.dot(w, row_tile(z, cond, is_draw, k, K, K_TILE, COLUMNS), c, input_precision="ieee")
        u = tl.dot(w, row_tile(z, uncond, is_guided, k, K, K_TILE, COLUMNS), u, input_precision="ieee")
    c, u = scaled(c, weight, codes, is_code, V, K, COLUMNS), scaled(u, weight, codes, is_code, V, K, COLUMNS)
    guidance = tl.load(guidance_scale + draws, mask=is_guided, other=0)
    heat = tl.load(temperature + draws, mask=is_draw, other=0)
    is_noisy = heat > 0
    logit = tl.where(is_guided[None, :], u + guidance[None, :] * (c - u), c)
    logit = tl.div_rn(logit, tl.where(is_noisy, heat, 1.0)[None, :] + tl.zeros([OUTS, ROWS], tl.float32))

    at = draws.to(tl.int64)[None, :] * V + codes[:, None]
    is_filtered = tl.load(top_k + draws, mask=is_draw, other=V) < V
    is_filtered = is_filtered | (tl.load(top_p + draws, mask=is_draw, other=1) < 1)
    tl.store(guided + at, logit, mask=is_filtered[None, :] & is_code[:, None])

    seeds = tl.load(seed + draws, mask=is_draw, other=0)
    positions = tl.load(position + draws, mask=is_draw, other=0)
    quads = tile * (OUTS // 4) + tl.arange(0, OUTS // 4)
    noise = tl.trans(
        noise_of(seeds[:, None], positions[:, None], quads[None, :] + tl.zeros([ROWS, OUTS // 4], tl.int32))
    )
    score = tl.where(is_noisy[None, :], logit + noise, logit)
    score = tl.where(is_code[:, None], score, float("-inf"))
    best = tl.max(score, axis=0)
    code = tl.min(tl.where(score == best[None, :], codes[:, None], V), axis=0)
    of_best = tl.sum(tl.where(codes[:, None] == code[None, :], logit, 0.0), axis=0)
    # NaN and infinities become a NaN of the sum, which says that there is no draw.
    is_broken = tl.sum(tl.where((tl.abs(logit) < float("inf")) | (is_code == 0)[:, None], 0, 1), axis=0) > 0
    largest = tl.max(tl.where(is_code[:, None], logit, float("-inf")), axis=0)
    mass = tl.sum(tl.where(is_code[:, None], tl.exp(logit - largest[None, :]), 0.0), axis=0)
    slot = draws * tl.num_programs(1) + tile
    tl.store(tile_score + slot, best, mask=is_draw)
    tl.store(tile_code + slot, code, mask=is_draw)
    tl.store(tile_logit + slot, of_best, mask=is_draw)
    tl.store(tile_max + slot, largest, mask=is_draw)
    tl.store(tile_sum + slot, tl.where(is_broken, float("nan"), mass), mask=is_draw)


@triton.jit
def order_of(x):
    """uint32 that are in the order of the floats."""
    bits = x.to(tl.int32, bitcast=True)
    return bits.to(tl.uint32, bitcast=True) ^ ((bits >> 31).to(tl.uint32, bitcast=True) | 0x80000000)


@triton.jit
def float_at(order):
    """What order_of came from."""
    bits = tl.where(order >= 0x80000000, order ^ 0x80000000, order ^ 0xFFFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def weight_above(logits, bound, least, largest, V: tl.constexpr, CODES: tl.constexpr, COUNT: tl.constexpr):
    """How many codes whose logit is at least `least` are not below `bound` in order; or what exp(logit - largest) they have."""
    total = tl.zeros([CODES], tl.float64)
    for first in range(0, V, CODES):
        codes = first + tl.arange(0, CODES)
        x = tl.load(logits + codes, mask=codes < V, other=float("-inf"))
        inside = (codes < V) & (x >= least) & (order_of(x) >= bound)
        if COUNT:
            total += tl.where(inside, 1.0, 0.0).to(tl.float64)
        else:
            total += tl.where(inside, tl.exp(x - largest), 0.0).to(tl.float64)
    return tl.sum(total, axis=0)


@triton.jit
def largest_bound(logits, wanted, least, largest, V: tl.constexpr, CODES: tl.constexpr, COUNT: tl.constexpr):
    """The largest logit such that those from it upwards weigh at least `wanted`, found bit by bit from the top."""
    bound = tl.full([], 0, tl.uint32)
    for bit in range(32):
        higher = bound | (tl.full([], 1, tl.uint32) << (31 - bit))
        bound = tl.where(weight_above(logits, higher, least, largest, V, CODES, COUNT) >= wanted, higher, bound)
    return float_at(bound)


@triton.jit
def pick(
    tile_score, tile_code, tile_logit, tile_max, tile_sum, guided, temperature, top_k, top_p, seed, position, slot,
    token, log_prob, last_code,
    V: tl.constexpr, NUM_TILES: tl.constexpr, TILES: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0)
    heat, k, mass_kept = tl.load(temperature + p), tl.load(top_k + p), tl.load(top_p + p)
    tiles = tl.arange(0, TILES)
    at, is_tile = p * NUM_TILES + tiles, tiles < NUM_TILES
    maxima = tl.load(tile_max + at, mask=is_tile, other=float("-inf"))
    sums = tl.load(tile_sum + at, mask=is_tile, other=0)
    largest = tl.max(maxima, axis=0)
    mass = tl.sum(tl.where(is_tile, sums * tl.exp(maxima - largest), 0.0), axis=0)
    is_broken = tl.sum(tl.where(sums == sums, 0, 1), axis=0) > 0
    if (k < V) | (mass_kept < 1):
        logits = guided + p.to(tl.int64) * V
        least = tl.full([], float("-inf"), tl.float32)
        if not is_broken:
            if k < V:
                least = largest_bound(logits, k.to(tl.float64), least, largest, V, CODES, True)
            if mass_kept < 1:
                bottom = tl.full([], 0, tl.uint32)
                wanted = weight_above(logits, bottom, least, largest, V, CODES, False) * mass_kept.to(tl.float64)
                least = largest_bound(logits, wanted, least, largest, V, CODES, False)
        mass = weight_above(logits, tl.full([], 0, tl.uint32), least, largest, V, CODES, False).to(tl.float32)
        best = tl.full([], float("-inf"), tl.float32)
        code = tl.full([], V, tl.int32)
        of_best = tl.full([], 0.0, tl.float32)
        for first in range(0, V, CODES):
            codes = first + tl.arange(0, CODES)
            x = tl.load(logits + codes, mask=codes < V, other=float("-inf"))
            score = x
            if heat > 0:
                score = x + noise_of(tl.load(seed + p), tl.load(position + p), first // 4 + tl.arange(0, CODES // 4))
            score = tl.where((codes < V) & (x >= least), score, float("-inf"))
            best_here = tl.max(score, axis=0)
            code_here = tl.min(tl.where(score == best_here, codes, V), axis=0)
            of_best_here = tl.sum(tl.where(codes == code_here, x, 0.0), axis=0)
            is_better = best_here > best
            best = tl.where(is_better, best_here, best)
            code = tl.where(is_better, code_here, code)
            of_best = tl.where(is_better, of_best_here, of_best)
    else:
        scores = tl.load(tile_score + at, mask=is_tile, other=float("-inf"))
        codes = tl.load(tile_code + at, mask=is_tile, other=V)
        best = tl.max(scores, axis=0)
        code = tl.min(tl.where(scores == best, codes, V), axis=0)
        of_best = tl.sum(tl.where(codes == code, tl.load(tile_logit + at, mask=is_tile, other=0), 0.0), axis=0)
    found = of_best - largest - tl.log(mass)
    found = tl.where(heat > 0, found, 0.0)
    tl.store(token + p, tl.where(is_broken, -1, code))
    tl.store(log_prob + p, tl.where(is_broken, float("nan"), found))
    tl.store(last_code + tl.load(slot + p), tl.where(is_broken, 0, code))


@triton.jit
def score_rows(
    z, weight, cond_row, uncond_row, logits, num_rows, num_draws,
    V: tl.constexpr, K: tl.constexpr, OUTS: tl.constexpr, ROWS: tl.constexpr, K_TILE: tl.constexpr, COLUMNS: tl.constexpr,
    DRAWS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    codes = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    of_draws = tl.zeros([ROWS], tl.int32)
    for first in range(0, num_draws, DRAWS):
        draws = first + tl.arange(0, DRAWS)
        cond = tl.load(cond_row + draws, mask=draws < num_draws, other=-1)
        uncond = tl.load(uncond_row + draws, mask=draws < num_draws, other=-1)
        is_drawn = (rows[:, None] == cond[None, :]) | (rows[:, None] == uncond[None, :])
        of_draws += tl.sum(is_drawn.to(tl.int32), axis=1)
    is_scored, is_code = (rows < num_rows) & (of_draws == 0), codes < V
    if tl.sum(is_scored.to(tl.int32), axis=0) > 0:
        acc = tl.zeros([OUTS, ROWS], tl.float32)
        for k0 in range(0, K, K_TILE):
            k = k0 + tl.arange(0, K_TILE)
            w = weight_tile(weight, codes, is_code, k, K, K_TILE, COLUMNS)
            acc = tl.dot(w, row_tile(z, rows, is_scored, k, K, K_TILE, COLUMNS), acc, input_precision="ieee")
        acc = scaled(acc, weight, codes, is_code, V, K, COLUMNS)
        at = logits + rows.to(tl.int64)[None, :] * V + codes[:, None]
        tl.store(at, acc, mask=is_scored[None, :] & is_code[:, None])


def launches(p, scratch):
    num_rows, num_draws, v, k = p.num_rows, p.num_draws, p.num_codes, p.hidden_size
    if num_rows == 0:
        return
    prepare, z = prepared(p, scratch, p.hidden, p.weight.dtype, num_rows, k, row_of=p.rows)
    yield prepare
    weights = {"z": z, "weight": p.weight}
    constants, stages = tiling(p.weight.dtype, k, DRAWS, operands=2)
    num_tiles = out_tiles(v)
    if num_draws > 0:
        found = {
            name: scratch((num_draws, num_tiles), "int32" if name == "tile_code" else "float32")
            for name in ("tile_score", "tile_code", "tile_logit", "tile_max", "tile_sum")
        }
        how = fields(p, "temperature", "top_k", "top_p", "seed", "position", "guided")
        yield Launch(
            draw_from_tiles,
            (tiles(num_draws, DRAWS), num_tiles),
            {**weights, **found, **how, **fields(p, "cond_row", "uncond_row", "guidance_scale", "num_draws")},
            {**constants, "V": v},
            # Two sums of each draw, and float8 to be widened beside them: four warps run out of registers.
            num_warps=8 if constants["COLUMNS"] == 64 else 4,
            num_stages=stages,
        )
        yield Launch(
            pick,
            (num_draws,),
            {**found, **how, **fields(p, "slot", "token", "log_prob", "last_code")},
            {
                "V": v,
                "NUM_TILES": num_tiles,
                "TILES": power_of_2(num_tiles),
                "CODES": min(CODES, power_of_2(max(v, 4))),
            },
        )
    yield Launch(
        score_rows,
        (tiles(num_rows, DRAWS), num_tiles),
        {**weights, **fields(p, "cond_row", "uncond_row", "logits", "num_rows", "num_draws")},
        {**constants, "V": v, "DRAWS": DRAWS},
        num_stages=stages,
    )
