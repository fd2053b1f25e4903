"""Guided sampling; see cfg_sample.h."""

import numpy as np

from simplear_engine.kernels.gumbel_noise.noise import gumbel_noise
from simplear_engine.kernels.op import F32, I32, U64, Case, In, InOut, Op, Out


def guide(cond, uncond, scale, temperature):
    """float32 [V]: the guided logits over the temperature (1 when it is 0), each operation rounded on its own."""
    mixed = cond if uncond is None else uncond + np.float32(scale) * (cond - uncond)
    return mixed / np.float32(temperature if temperature > 0 else 1)


def allowed(z, top_k, top_p):
    """bool [V]: the codes that top-k, then top-p leave; ties with the last one stay."""
    keep = z >= np.sort(z)[-top_k]
    if top_p < 1:
        mass = np.where(keep, np.exp(z.astype(np.float64) - z.max()), 0)
        order = np.argsort(-z, kind="stable")
        needed = np.searchsorted(np.cumsum(mass[order]), top_p * mass.sum()) + 1
        keep &= z >= z[order[min(needed, len(z)) - 1]]
    return keep


def sample(z, temperature, top_k, top_p, seed, position):
    """(token, log_prob) of one pair."""
    if not np.isfinite(z).all():
        return -1, np.nan
    keep = allowed(z, top_k, top_p)
    if temperature == 0:
        return int(np.argmax(np.where(keep, z, -np.inf))), 0.0
    token = int(np.argmax(np.where(keep, z + gumbel_noise(seed, position, len(z)), -np.inf)))
    exact = z.astype(np.float64)
    return token, exact[token] - exact.max() - np.log(np.exp(exact[keep] - exact.max()).sum())


def reference(
    logits, cond_row, uncond_row, guidance_scale, temperature, top_k, top_p, seed, position, slot, last_code, **_
):
    num_pairs, num_codes = len(cond_row), logits.shape[1]
    guided = np.empty((num_pairs, num_codes), np.float32)
    token, log_prob = np.empty(num_pairs, np.int32), np.empty(num_pairs, np.float32)
    last_code = last_code.copy()
    for p in range(num_pairs):
        uncond = logits[uncond_row[p]] if uncond_row[p] >= 0 else None
        with np.errstate(invalid="ignore"):
            guided[p] = guide(logits[cond_row[p]], uncond, guidance_scale[p], temperature[p])
        token[p], log_prob[p] = sample(guided[p], temperature[p], top_k[p], top_p[p], int(seed[p]), int(position[p]))
        last_code[slot[p]] = max(token[p], 0)
    return {"guided": guided, "token": token, "log_prob": log_prob, "last_code": last_code}


def make_inputs(case, rng):
    a = case.axes
    pairs, codes = a["P"], a["V"]
    rows = rng.permutation(a["R"]).astype(np.int32)
    guided = rng.integers(0, 2, pairs).astype(bool)
    logits = (rng.standard_normal((a["R"], codes)) * 3).astype(np.float32)
    uncond_row = np.where(guided, rows[pairs : 2 * pairs], -1).astype(np.int32)
    read = np.concatenate([rows[:pairs], uncond_row[guided]])
    logits[np.setdiff1d(np.arange(a["R"]), read)] = np.nan
    if pairs > 4:
        logits[rows[0], codes // 2] = np.inf
    return {
        "logits": logits,
        "cond_row": rows[:pairs],
        "uncond_row": uncond_row,
        "guidance_scale": np.where(guided, rng.uniform(0, 7, pairs), np.nan).astype(np.float32),
        "temperature": rng.choice([0.0, 0.5, 1.0, 1.7], pairs).astype(np.float32),
        "top_k": rng.choice([1, (codes + 1) // 2, codes], pairs).astype(np.int32),
        "top_p": rng.choice([0.2, 0.9, 1.0], pairs).astype(np.float32),
        "seed": rng.integers(0, 2**64, pairs, dtype=np.uint64),
        "position": rng.integers(0, 4096, pairs).astype(np.int32),
        "slot": rng.permutation(a["S"])[:pairs].astype(np.int32),
        "last_code": rng.integers(0, codes, a["S"]).astype(np.int32),
    }


OP = Op(
    name="cfg_sample",
    axes={"P": "num_pairs", "R": "num_rows", "V": "num_codes", "S": "num_slots"},
    args={
        "logits": In("R, V", F32),
        "cond_row": In("P", I32),
        "uncond_row": In("P", I32),
        "guidance_scale": In("P", F32),
        "temperature": In("P", F32),
        "top_k": In("P", I32),
        "top_p": In("P", F32),
        "seed": In("P", U64),
        "position": In("P", I32),
        "slot": In("P", I32),
        "guided": Out("P, V", F32),
        "token": Out("P", I32),
        "log_prob": Out("P", F32),
        "last_code": InOut("S", I32),
    },
    reference=reference,
    make_inputs=make_inputs,
    test_cases=[
        Case({"P": pairs, "R": rows, "V": codes, "S": pairs + 1})
        for pairs, rows, codes in [(1, 2, 4), (3, 7, 37), (8, 16, 1000), (8, 16, 1024), (5, 10, 4099), (2, 4, 64000)]
    ],
    bench_cases=[Case({"P": 1, "R": 2, "V": 64000, "S": 1})],
    tolerance=lambda case: (2e-6, 3e-6),
    bytes_moved=lambda a, dtypes: a["P"] * a["V"] * 16,
    flops=lambda a: a["P"] * a["V"] * 60,
)
