"""Causal attention over a paged cache; see paged_attention.h."""

import numpy as np

from simplear_engine.kernels.op import F32, FLOAT, I32, Case, In, Op, Out
from simplear_engine.kernels.rope_append import CODES, GPU_KV, KV, bytes_of_key, numbers_of, quantize

BLOCK_SIZE = 16


def reference(q, k_cache, v_cache, query_start_loc, context_lens, block_table, scale, k_scale=None, v_scale=None, **_):
    groups, dim = k_cache.shape[1], k_cache.shape[2]
    heads = q.shape[1] // dim
    out = np.full_like(q, np.nan)  # rows of no sequence are left as they are
    for s, (begin, end) in enumerate(zip(query_start_loc[:-1], query_start_loc[1:], strict=True)):
        for row in range(begin, end):
            num_keys = context_lens[s] - (end - row) + 1
            position = np.arange(num_keys)
            block, offset = block_table[s, position // BLOCK_SIZE], position % BLOCK_SIZE
            for h in range(heads):
                g = h // (heads // groups)
                keys = numbers_of(k_cache[block, g, :, offset]).astype(np.float64)
                values = numbers_of(v_cache[block, g, offset, :]).astype(np.float64)
                if k_scale is not None:
                    keys *= k_scale[block, g, offset][:, None]
                    values *= v_scale[block, g, offset][:, None]
                scores = keys @ q[row, h * dim : (h + 1) * dim] * scale
                weights = np.exp(scores - scores.max())
                out[row, h * dim : (h + 1) * dim] = weights @ values / weights.sum()
    return {"out": out}


def make_inputs(case, rng):
    """Sequences of the case's lengths; cache entries that nobody may read hold NaN."""
    a = case.axes
    contexts, queries = lengths_of(a)
    has_scales = case.dtypes["k_cache"] in CODES
    # 0x7F is float8's NaN
    unread, dtype = {"int8": (-128, np.int8), CODES[1]: (0x7F, np.uint8)}.get(
        case.dtypes["k_cache"], (np.nan, np.float32)
    )
    k_cache = np.full((a["B"], a["G"], a["E"], BLOCK_SIZE), unread, dtype)
    v_cache = np.full((a["B"], a["G"], BLOCK_SIZE, a["E"]), unread, dtype)
    k_scale, v_scale = (np.full((a["B"], a["G"], BLOCK_SIZE), np.nan, np.float32) for _ in range(2))
    blocks = iter(rng.permutation(a["B"]))
    # Entries of the table that no key needs point nowhere.
    block_table = np.full((a["S"], a["T"]), 1 << 30, np.int32)
    for s, length in enumerate(contexts):
        for i in range(-(-length // BLOCK_SIZE)):
            block_table[s, i] = next(blocks)
        position = np.arange(length)
        block, offset = block_table[s, position // BLOCK_SIZE], position % BLOCK_SIZE
        k, v = rng.standard_normal((2, length, a["G"], a["E"])).astype(np.float32)
        if has_scales:
            k, k_scale[block, :, offset] = quantize(k, dtype)
            v, v_scale[block, :, offset] = quantize(v, dtype)
        k_cache[block, :, :, offset], v_cache[block, :, offset, :] = k, v
    q = rng.standard_normal((a["N"], a["H"] * a["E"])).astype(np.float32)
    q[sum(queries) :] = np.nan
    return {
        "q": q,
        "k_cache": k_cache,
        "v_cache": v_cache,
        **({"k_scale": k_scale, "v_scale": v_scale} if has_scales else {}),
        "query_start_loc": np.concatenate([[0], np.cumsum(queries)]).astype(np.int32),
        "context_lens": np.array(contexts, np.int32),
        "block_table": block_table,
    }


# Keys of each sequence, queries of each. Some end around the ends of blocks (16 keys) and of the chunks that the CPU
# kernel computes at a time (128). Sequences of length 0 at the end are padding, and rows that belong to none follow.
TEST_LENGTHS = [
    ([1], [1]),
    ([37, 17], [1, 1]),
    ([5, 16, 50, 0, 0], [5, 1, 33, 0, 0]),
    ([63, 64, 65, 127, 128, 129], [1, 1, 1, 1, 1, 3]),
    ([255, 256, 257, 600], [1, 66, 1, 2]),
]
BENCH_LENGTHS = [([100] * 2, [1] * 2), ([900] * 2, [1] * 2), ([4096] * 2, [1] * 2), ([900] * 2, [8] * 2)]


def axes_of(contexts, queries):
    table = -(-max(contexts) // BLOCK_SIZE) + 1
    return {"N": sum(queries) + 3 * contexts.count(0), "S": len(contexts), "B": len(contexts) * table, "T": table}


def lengths_of(axes):
    """The lengths behind a case: its axes tell them apart."""
    return next(lengths for lengths in TEST_LENGTHS + BENCH_LENGTHS if axes_of(*lengths).items() <= dict(axes).items())


def case(lengths, heads, groups, dim, dtype, out):
    axes = {**axes_of(*lengths), "H": heads, "G": groups, "E": dim}
    return Case(axes, {"k_cache": dtype, "v_cache": dtype, "out": out}, {"scale": round(dim**-0.5, 6)})


OP = Op(
    name="paged_attention",
    axes={
        "N": "num_tokens",
        "S": "num_seqs",
        "H": "num_heads",
        "G": "num_kv_heads",
        "E": "head_dim",
        "B": "num_blocks",
        "T": "max_blocks_per_seq",
    },
    args={
        "q": In("N, H*E", F32),
        "k_cache": In("B, G, E, 16", KV, gpu_dtypes=GPU_KV),
        "v_cache": In("B, G, 16, E", KV, gpu_dtypes=GPU_KV),
        "k_scale": In("B, G, 16", F32, optional=True),
        "v_scale": In("B, G, 16", F32, optional=True),
        "query_start_loc": In("S+1", I32),
        "context_lens": In("S", I32),
        "block_table": In("S, T", I32),
        "out": Out("N, H*E", FLOAT),
    },
    scalars={"scale": None},
    reference=reference,
    make_inputs=make_inputs,
    test_cases=[
        case(lengths, heads, groups, dim, dtype, out)
        for lengths in TEST_LENGTHS
        for heads, groups, dim in [(4, 2, 16), (14, 2, 64), (6, 1, 128), (8, 1, 64), (3, 3, 10), (22, 2, 34)]
        for dtype, out in [("float32", "float32"), ("bfloat16", "bfloat16"), ("int8", "float32"), ("int8", "bfloat16")]
    ],
    bench_cases=[
        case(lengths, 14, 2, 64, dtype, "bfloat16") for lengths in BENCH_LENGTHS for dtype in ("bfloat16", "int8")
    ],
    tolerance=lambda case: (8e-3, 1e-4) if case.dtypes["out"] == "bfloat16" else (1e-5, 2e-6),
    bytes_moved=lambda a, dtypes: 2 * a["S"] * (a["T"] - 1) * 16 * a["G"] * bytes_of_key(a["E"], dtypes["k_cache"]),
    flops=lambda a: 4 * a["N"] * (a["T"] - 1) * 16 * a["H"] * a["E"],
    multiplies="out",
)
