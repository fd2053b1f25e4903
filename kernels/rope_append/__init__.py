"""Rotary embedding and append to the paged cache; see rope_append.h."""

import numpy as np

from simplear_engine.kernels import float8
from simplear_engine.kernels.op import F32, FLOAT, I32, Case, In, InOut, Op, Out

BLOCK_SIZE = 16
KV, GPU_KV = (*FLOAT, "int8"), (float8.NAME,)
CODES = ("int8", float8.NAME)  # kept with a scale for each token and KV head


def cos_sin_table(num_positions: int, head_dim: int, theta: float) -> np.ndarray:
    """float32 [num_positions, head_dim]: cosines of all angles, then sines.

    The angle is a float32 product, as in the published implementation, so that long contexts agree with it.
    """
    inverse_frequency = (1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    angle = np.arange(num_positions, dtype=np.float32)[:, None] * inverse_frequency
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1, dtype=np.float32)


def rotate(x, cos, sin):
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def bytes_of_key(head_dim: int, dtype: str) -> int:
    """Bytes that a key, or a value, of one head takes in the cache."""
    return {"float32": 4 * head_dim, "bfloat16": 2 * head_dim}.get(dtype, head_dim + 4)


def quantize(x, codes):
    """float32 [..., E] -> codes [..., E] and their scales [...]. codes: np.int8, or np.uint8 for the bits of float8."""
    largest = float8.LARGEST if codes == np.uint8 else np.float32(127)
    scale = (np.abs(x).max(-1) / largest).astype(np.float32)
    divisor = np.where(scale > 0, scale, 1).astype(np.float32)
    quotient = (x / divisor[..., None]).clip(-largest, largest)
    return float8.encode(quotient) if codes == np.uint8 else np.rint(quotient).astype(np.int8), scale


def numbers_of(cache):
    """What an array of the cache stands for, before its scales."""
    return float8.decode(cache) if cache.dtype == np.uint8 else cache


def reference(qkv, cos_sin, positions, slot_mapping, k_cache, v_cache, k_scale=None, v_scale=None, q=None, **_):
    num_tokens = len(positions)
    groups, dim = k_cache.shape[1], k_cache.shape[2]
    heads = qkv.shape[1] // dim - 2 * groups
    rows = qkv.reshape(num_tokens, heads + 2 * groups, dim)
    cos, sin = np.split(cos_sin[positions][:, None, :], 2, axis=-1)
    k_cache, v_cache = k_cache.copy(), v_cache.copy()
    kept = slot_mapping >= 0
    block, offset = slot_mapping[kept] // BLOCK_SIZE, slot_mapping[kept] % BLOCK_SIZE
    k, v = rotate(rows[:, heads : heads + groups], cos, sin)[kept], rows[kept, heads + groups :]
    found = {"q": rotate(rows[:, :heads], cos, sin).reshape(num_tokens, -1), "k_cache": k_cache, "v_cache": v_cache}
    if k_scale is not None:
        k_scale, v_scale = k_scale.copy(), v_scale.copy()
        k, k_scale[block, :, offset] = quantize(k, k_cache.dtype)
        v, v_scale[block, :, offset] = quantize(v, v_cache.dtype)
        found |= {"k_scale": k_scale, "v_scale": v_scale}
    k_cache[block, :, :, offset] = k
    v_cache[block, :, offset, :] = v
    return found


def make_inputs(case, rng):
    a = case.axes
    qkv = rng.standard_normal((a["N"], (a["H"] + 2 * a["G"]) * a["E"])).astype(np.float32)
    k_cache = rng.standard_normal((a["B"], a["G"], a["E"], BLOCK_SIZE)).astype(np.float32)
    v_cache = rng.standard_normal((a["B"], a["G"], BLOCK_SIZE, a["E"])).astype(np.float32)
    scales = {}
    if case.dtypes["k_cache"] in CODES:
        codes = np.int8 if case.dtypes["k_cache"] == "int8" else np.uint8
        k_cache, v_cache = (quantize(cache, codes)[0] for cache in (k_cache, v_cache))
        scales = {name: rng.random((a["B"], a["G"], BLOCK_SIZE), np.float32) for name in ("k_scale", "v_scale")}
        qkv[0, -a["E"] :] = 0  # a value without a largest element
        if codes == np.uint8 and a["N"] > 1:  # numbers half-way between two codes, small ones among them
            lower = np.append(126, rng.integers(0, 125, a["E"] - 1)).astype(np.uint8)
            between = (float8.decode(lower) + float8.decode(np.minimum(lower + 1, 126))) / 2
            qkv[1, -a["E"] :] = between * rng.choice([-1, 1], a["E"])
    slot_mapping = rng.permutation(a["B"] * BLOCK_SIZE)[: a["N"]].astype(np.int32)
    slot_mapping[5::6] = -1  # padding
    return {
        "qkv": qkv,
        "cos_sin": cos_sin_table(a["M"], a["E"], 1e4),
        "positions": rng.integers(0, a["M"], a["N"]).astype(np.int32),
        "slot_mapping": slot_mapping,
        "k_cache": k_cache,
        "v_cache": v_cache,
        **scales,
    }


OP = Op(
    name="rope_append",
    axes={
        "N": "num_tokens",
        "H": "num_heads",
        "G": "num_kv_heads",
        "E": "head_dim",
        "B": "num_blocks",
        "M": "num_positions",
    },
    args={
        "qkv": In("N, (H+2*G)*E", F32),
        "cos_sin": In("M, E", F32),
        "positions": In("N", I32),
        "slot_mapping": In("N", I32),
        "q": Out("N, H*E", F32),
        "k_cache": InOut("B, G, E, 16", KV, gpu_dtypes=GPU_KV),
        "v_cache": InOut("B, G, 16, E", KV, gpu_dtypes=GPU_KV),
        "k_scale": InOut("B, G, 16", F32, optional=True),
        "v_scale": InOut("B, G, 16", F32, optional=True),
    },
    reference=reference,
    make_inputs=make_inputs,
    test_cases=[
        Case({"N": n, "H": h, "G": g, "E": e, "B": 5, "M": 97}, {"k_cache": dtype, "v_cache": dtype})
        for n, h, g, e in [(1, 4, 2, 16), (7, 14, 2, 64), (33, 3, 1, 10)]
        for dtype in KV
    ],
    bench_cases=[
        Case({"N": 2, "H": 14, "G": 2, "E": 64, "B": 64, "M": 1100}, {"k_cache": "bfloat16", "v_cache": "bfloat16"})
    ],
    tolerance=lambda case: (8e-3, 1e-6) if case.dtypes["k_cache"] == "bfloat16" else (1e-6, 1e-6),
    bytes_moved=lambda a, dtypes: (
        a["N"] * (8 * a["E"] * (a["H"] + a["G"]) + 2 * a["G"] * bytes_of_key(a["E"], dtypes["k_cache"]))
    ),
    flops=lambda a: 6 * a["N"] * a["E"] * (a["H"] + a["G"]),
)
