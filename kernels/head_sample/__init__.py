"""RMSNorm, visual head and guided sampling; see head_sample.h."""

import numpy as np

from simplear_engine.kernels.gumbel_noise.noise import gumbel_noise
from simplear_engine.kernels.linear import weight_bytes
from simplear_engine.kernels.op import F32, FLOAT, I32, U64, Case, In, InOut, Op, Out
from simplear_engine.kernels.packed_weight import ANY_WEIGHT, WEIGHT, ReferenceWeight, norm_slack, pack_array, rms_norm


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
    """(token, log_prob) of one draw."""
    if not np.isfinite(z).all():
        return -1, np.nan
    keep = allowed(z, top_k, top_p)
    if temperature == 0:
        return int(np.argmax(np.where(keep, z, -np.inf))), 0.0
    token = int(np.argmax(np.where(keep, z + gumbel_noise(seed, position, len(z)), -np.inf)))
    exact = z.astype(np.float64)
    return token, exact[token] - exact.max() - np.log(np.exp(exact[keep] - exact.max()).sum())


def reference(
    hidden, rows, norm_weight, weight, cond_row, uncond_row, guidance_scale, temperature, top_k, top_p, seed, position,
    slot, logits, guided, last_code, eps, **_,
):  # fmt: skip
    computed = weight.product(rms_norm(hidden[rows], norm_weight, eps))
    num_codes, num_draws = computed.shape[1], len(cond_row)
    logits, guided, last_code = logits.copy(), guided.copy(), last_code.copy()
    token, log_prob = np.empty(num_draws, np.int32), np.empty(num_draws, np.float32)
    for p in range(num_draws):
        uncond = computed[uncond_row[p]] if uncond_row[p] >= 0 else None
        with np.errstate(invalid="ignore"):
            z = guide(computed[cond_row[p]], uncond, guidance_scale[p], temperature[p])
        token[p], log_prob[p] = sample(z, temperature[p], top_k[p], top_p[p], int(seed[p]), int(position[p]))
        last_code[slot[p]] = max(token[p], 0)
        if top_k[p] < num_codes or top_p[p] < 1:
            guided[p] = z
    scored = np.setdiff1d(np.arange(len(rows)), np.concatenate([cond_row, uncond_row]))
    logits[scored] = computed[scored]
    return {"logits": logits, "guided": guided, "token": token, "log_prob": log_prob, "last_code": last_code}


def make_inputs(case, rng):
    """Draws with and without guidance and filters; one row more than they need, which is scored; draw 5 is infinite."""
    a = case.axes
    draws, codes, rows = a["P"], a["V"], a["R"]
    order = rng.permutation(rows).astype(np.int32)
    is_guided = np.arange(2 * draws) + draws < rows
    uncond_row = np.where(is_guided[:draws], np.resize(order[draws:], draws), -1).astype(np.int32)
    hidden = rng.standard_normal((a["M"], a["K"])).astype(np.float32)
    from_row = rng.permutation(a["M"])[:rows].astype(np.int32)
    hidden[np.setdiff1d(np.arange(a["M"]), from_row)] = np.nan
    if draws > 5:
        hidden[from_row[order[5]]] = np.inf
    inputs = {
        "hidden": hidden,
        "rows": from_row,
        "norm_weight": rng.standard_normal(a["K"]).astype(np.float32),
        "weight": rng.standard_normal((codes, a["K"])).astype(np.float32) * np.float32(3 / np.sqrt(a["K"])),
        "cond_row": order[:draws],
        "uncond_row": uncond_row,
        "guidance_scale": np.where(uncond_row >= 0, rng.uniform(0, 7, draws), np.nan).astype(np.float32),
        "temperature": rng.choice([0.0, 0.5, 1.0, 1.7], draws).astype(np.float32),
        "top_k": rng.choice([1, min(3, codes), (codes + 1) // 2, codes, codes], draws).astype(np.int32),
        "top_p": rng.choice([0.2, 0.9, 1.0, 1.0], draws).astype(np.float32),
        "seed": rng.integers(0, 2**64, draws, dtype=np.uint64),
        "position": rng.integers(0, 4096, draws).astype(np.int32),
        "slot": rng.permutation(a["S"])[:draws].astype(np.int32),
        "logits": np.full((rows, codes), -7, np.float32),
        "guided": np.full((draws, codes), -7, np.float32),
        "last_code": rng.integers(0, codes, a["S"]).astype(np.int32),
    }
    for name, value in case.inputs.items():
        inputs[name][:] = value
    return inputs


def case(draws, rows, codes, k, weight, norm="float32", **inputs):
    axes = {"P": draws, "R": rows, "M": rows + 2, "V": codes, "K": k, "S": draws + 1}
    return Case(axes, {"norm_weight": norm, "weight": weight}, {"eps": 1e-6}, inputs)


def tolerance(case):
    """The rounding of a running float32 sum grows with the square root of its length."""
    return 1e-5, 4e-6 * np.sqrt(case.axes["K"]) + norm_slack(
        case.axes["R"] * case.axes["K"], case.dtypes["weight"], 0.1
    )


OP = Op(
    name="head_sample",
    axes={
        "R": "num_rows",
        "M": "num_source_rows",
        "K": "hidden_size",
        "P": "num_draws",
        "V": "num_codes",
        "S": "num_slots",
    },
    args={
        "hidden": In("M, K", F32),
        "rows": In("R", I32),
        "norm_weight": In("K", FLOAT),
        "weight": In("V, K", ANY_WEIGHT),
        "cond_row": In("P", I32),
        "uncond_row": In("P", I32),
        "guidance_scale": In("P", F32),
        "temperature": In("P", F32),
        "top_k": In("P", I32),
        "top_p": In("P", F32),
        "seed": In("P", U64),
        "position": In("P", I32),
        "slot": In("P", I32),
        "logits": InOut("R, V", F32),
        "guided": InOut("P, V", F32),
        "token": Out("P", I32),
        "log_prob": Out("P", F32),
        "last_code": InOut("S", I32),
    },
    scalars={"eps": None},
    layouts={"weight": pack_array},
    reference_forms={"weight": ReferenceWeight},
    reference=reference,
    make_inputs=make_inputs,
    test_cases=[
        case(draws, rows, codes, k, weight, norm)
        for draws, rows, codes, k in [
            (1, 2, 4, 32),
            (3, 7, 37, 18),
            (8, 17, 1000, 34),
            (8, 16, 1024, 64),
            (5, 9, 4099, 66),
        ]
        for weight, norm in zip(WEIGHT, ("float32", "bfloat16", "bfloat16", "float32"), strict=True)
    ],
    # As drawn by default, and with both filters.
    bench_cases=[
        case(draws, 2 * draws, 64000, 896, weight, "bfloat16", temperature=1.0, top_k=top_k, top_p=top_p)
        for top_k, top_p in [(64000, 1.0), (2000, 0.9)]
        for weight in WEIGHT
        for draws in (1, 8)
    ],
    tolerance=tolerance,
    bytes_moved=lambda a, dtypes: weight_bytes(a["V"], a["K"], dtypes["weight"]),
    flops=lambda a: 2 * a["R"] * a["V"] * a["K"] + 60 * a["P"] * a["V"],
    multiplies="weight",
)
