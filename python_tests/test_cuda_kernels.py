"""CUDA kernels against their references, simulated on the host (csrc/simt): every case that a GPU takes.

The simulation runs the threads of a block in an order that a seed chooses, copies asynchronous data when somebody waits
for it and not before, and ends a barrier that not all reach in an error. It says nothing about speed, and its tensor
cores add in an order of their own.
"""

import numpy as np
import pytest

from simplear_engine import _C
from simplear_engine.dtypes import decode_bfloat16, encode_bfloat16
from simplear_engine.errors import UnsupportedError
from simplear_engine.kernels import float8
from simplear_engine.kernels.op import Case, all_ops
from simplear_engine.kernels.packed_weight import ReferenceWeight
from simplear_engine.kernels.weight_tiles import pack_tiles
from simplear_engine.testing.device_trial import cases_of
from simplear_engine.testing.simt_trial import SimtTrial

OPS = all_ops()
SIMULATED = [name for name, impls in _C.cuda_op_impls().items() if "simt" in impls]


def cases(name):
    return cases_of(OPS[name].test_cases)


@pytest.fixture(scope="module")
def pool():
    return _C.ThreadPool(1)


@pytest.fixture
def run(pool):
    def run(op, args, **scalars):
        OPS[op].run("simt", pool, args, **scalars)

    return run


@pytest.mark.parametrize(
    "name, case", [pytest.param(name, case, id=f"{name}-{case.id}") for name in SIMULATED for case in cases(name)]
)
def test_kernel_matches_reference(name, case, pool):
    trial = SimtTrial(OPS[name], case, pool)
    trial.run()
    trial.check()


@pytest.mark.parametrize("name", ["linear", "paged_attention", "head_sample", "verify_drafts"])
def test_order_of_threads_does_not_matter(name, pool):
    case = min((case for case in cases(name) if "bfloat16" in case.dtypes.values() or name == "verify_drafts"),
               key=lambda case: abs(case.axes.get("N", case.axes.get("R", 0)) - 7))  # fmt: skip
    outcomes = set()
    for seed in range(3):
        _C.set_simt_seed(seed)
        trial = SimtTrial(OPS[name], case, pool)
        trial.run()
        outputs = [trial._args[arg].numpy() for arg, spec in OPS[name].args.items() if spec.role != "in"
                   and arg in trial._args]  # fmt: skip
        outcomes.add(b"".join(output.tobytes() for output in outputs))
    assert len(outcomes) == 1


def tensor(array):
    return _C.Tensor.from_numpy(np.ascontiguousarray(array))


def rounded(array):
    return _C.Tensor.from_numpy(encode_bfloat16(array), "bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat16", float8.NAME])
@pytest.mark.parametrize("num_rows", [3, 11, 29])
def test_row_of_a_product_is_the_same_alone_and_in_a_crowd(run, num_rows, dtype):
    rng = np.random.default_rng(num_rows)
    x = rng.standard_normal((num_rows, 300)).astype(np.float32)
    norm, weight = tensor(np.ones(300, np.float32)), pack_tiles([rng.standard_normal((40, 300))], dtype)

    def product(rows):
        y = tensor(np.full((len(rows), 40), np.nan, np.float32))
        run("linear", {"x": tensor(rows), "norm_weight": norm, "weight": weight, "y": y}, accumulate=0, eps=1e-6)
        return y.numpy()

    together = product(x)
    for row in (0, num_rows // 2, num_rows - 1):
        np.testing.assert_array_equal(product(x[row : row + 1])[0], together[row])


def test_product_of_more_columns_than_fit_beside_a_long_pipeline(run):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 10240)).astype(np.float32), rng.standard_normal((8, 10240)).astype(np.float32)
    y = tensor(np.full((2, 8), np.nan, np.float32))
    run("linear", {"x": rounded(x), "weight": pack_tiles([weight], "bfloat16"), "y": y}, accumulate=0)
    expected = ReferenceWeight(weight, "bfloat16").product(x)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("dim", [64, 16])  # on tensor cores, and not
def test_attention_of_a_sequence_is_the_same_alone_and_in_a_crowd(run, dim):
    rng = np.random.default_rng(dim)
    contexts, queries, heads, groups = [300, 17, 140], [1, 5, 3], 7, 1
    k_cache = rounded(rng.standard_normal((64, groups, dim, 16)).astype(np.float32))
    v_cache = rounded(rng.standard_normal((64, groups, 16, dim)).astype(np.float32))
    table = rng.permutation(64)[:57].reshape(3, 19).astype(np.int32)
    q = rng.standard_normal((sum(queries), heads * dim)).astype(np.float32)
    start = np.concatenate([[0], np.cumsum(queries)]).astype(np.int32)

    def attend(q, start, contexts, table):
        out = tensor(np.full(q.shape, np.nan, np.float32))
        run("paged_attention", {
            "q": tensor(q), "k_cache": k_cache, "v_cache": v_cache, "query_start_loc": tensor(start),
            "context_lens": tensor(np.array(contexts, np.int32)), "block_table": tensor(table), "out": out,
        }, scale=0.3)  # fmt: skip
        return out.numpy()

    together = attend(q, start, contexts, table)
    for s in range(3):
        rows = slice(start[s], start[s + 1])
        alone = attend(q[rows], np.array([0, queries[s]], np.int32), contexts[s : s + 1], table[s : s + 1])
        np.testing.assert_array_equal(alone, together[rows])
        # A window is many queries at once; one query of it alone has the same bits.
        last = attend(q[rows][-1:], np.array([0, 1], np.int32), contexts[s : s + 1], table[s : s + 1])
        np.testing.assert_array_equal(last[0], together[rows][-1])


def test_draw_is_the_same_alone_and_in_a_crowd(run):
    rng = np.random.default_rng(5)
    hidden = rng.standard_normal((18, 64)).astype(np.float32)
    weight, norm = pack_tiles([rng.standard_normal((300, 64)) / 4], "bfloat16"), tensor(np.ones(64, np.float32))

    def draw(pairs):
        num = len(pairs)
        ints = lambda values: tensor(np.array(values, np.int32))  # noqa: E731
        token, log_prob = ints([-7] * num), tensor(np.full(num, np.nan, np.float32))
        run("head_sample", {
            "hidden": tensor(hidden), "rows": ints([row for pair in pairs for row in (2 * pair, 2 * pair + 1)]),
            "norm_weight": norm, "weight": weight, "cond_row": ints(range(0, 2 * num, 2)),
            "uncond_row": ints(range(1, 2 * num, 2)), "guidance_scale": tensor(np.full(num, 6, np.float32)),
            "temperature": tensor(np.ones(num, np.float32)), "top_k": ints([300] * num),
            "top_p": tensor(np.ones(num, np.float32)), "seed": tensor(np.array(pairs, np.uint64)),
            "position": ints([100 + pair for pair in pairs]), "slot": ints(range(num)),
            "logits": tensor(np.zeros((2 * num, 300), np.float32)),
            "guided": tensor(np.zeros((num, 300), np.float32)), "token": token, "log_prob": log_prob,
            "last_code": ints([0] * num),
        }, eps=1e-6)  # fmt: skip
        return list(zip(token.numpy().tolist(), log_prob.numpy().tolist(), strict=True))

    together = draw(range(9))
    assert [draw([pair])[0] for pair in (0, 4, 8)] == [together[pair] for pair in (0, 4, 8)]


def test_row_that_pads_a_step_writes_no_key(run):
    k_cache, v_cache = (tensor(np.full(shape, -7, np.float32)) for shape in [(2, 1, 16, 16), (2, 1, 16, 16)])
    run("rope_append", {
        "qkv": tensor(np.ones((2, 48), np.float32)), "cos_sin": tensor(np.ones((4, 16), np.float32)),
        "positions": tensor(np.zeros(2, np.int32)), "slot_mapping": tensor(np.array([-1, 17], np.int32)),
        "q": tensor(np.zeros((2, 16), np.float32)), "k_cache": k_cache, "v_cache": v_cache,
    })  # fmt: skip
    assert (k_cache.numpy() != -7).sum() == (v_cache.numpy() != -7).sum() == 16


def test_bfloat16_is_rounded_as_everywhere(run):
    edges = np.array([0, -0.0, 1, 1 + 2**-8, 1 + 3 * 2**-8, 3e38, 1e-40, np.inf, -np.inf, np.nan], np.float32)
    v_cache = _C.Tensor.zeros([1, 1, 16, 10], "bfloat16")
    run("rope_append", {
        "qkv": tensor(np.concatenate([np.zeros(20, np.float32), edges])[None]),
        "cos_sin": tensor(np.ones((1, 10), np.float32)), "positions": tensor(np.zeros(1, np.int32)),
        "slot_mapping": tensor(np.zeros(1, np.int32)), "q": tensor(np.zeros((1, 10), np.float32)),
        "k_cache": _C.Tensor.zeros([1, 1, 10, 16], "bfloat16"), "v_cache": v_cache,
    })  # fmt: skip
    np.testing.assert_array_equal(decode_bfloat16(v_cache.numpy()[0, 0, 0]), decode_bfloat16(encode_bfloat16(edges)))


@pytest.mark.parametrize("name", ["linear", "gate_up_silu", "head_sample"])
def test_weights_that_no_gpu_kernel_takes_are_refused(name, pool):
    case = next(case for case in OPS[name].test_cases if case.dtypes["weight"] == "int8")
    trial = SimtTrial(OPS[name], Case(case.axes, {**case.dtypes, "weight": "float32"}, case.scalars), pool)
    packed = trial._args["weight"]
    trial._args["weight"] = type(packed)(_C.Tensor.zeros(packed.storage.shape, "int8"), packed.shape)
    with pytest.raises(
        UnsupportedError, match=f"{name}.weight: expected float32, bfloat16 or float8_e4m3 on a GPU, got int8"
    ):
        trial.run()


def test_float8_is_rounded_to_nearest_even():
    torch = pytest.importorskip("torch")
    codes = np.arange(256, dtype=np.uint8)
    numbers = float8.decode(codes)[codes & 127 != 127]
    ordered = np.unique(numbers)
    values = np.concatenate(
        [numbers, (ordered[1:] + ordered[:-1]) / 2, np.linspace(-448, 448, 10001, dtype=np.float32)]
    )
    expected = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(float8.encode(values), expected)


@pytest.mark.parametrize("num_groups, resident", [(1, 3), (112, 1), (144, 2), (500, 2), (608, 2), (609, 4), (8000, 3)])
def test_blocks_cover_all_groups_and_no_multiprocessor_has_more_than_it_must(num_groups, resident):
    multiprocessors = 132
    per_block, blocks = _C.divide_groups(num_groups, multiprocessors, resident)
    assert (blocks - 1) * per_block < num_groups <= blocks * per_block
    assert blocks <= multiprocessors * resident
    # One block for each multiprocessor would do as well or worse.
    assert per_block * -(-blocks // multiprocessors) <= -(-num_groups // multiprocessors)


def test_blocks_take_the_fewest_rows_that_cover_a_step_and_fit():
    sizes = [100, 150, 250]
    assert [_C.row_groups(rows, 250, sizes) for rows in (1, 8, 9, 16, 17, 500)] == [1, 1, 2, 2, 4, 4]
    assert [_C.row_groups(500, bytes, sizes) for bytes in (249, 149, 99)] == [2, 1, 0]
