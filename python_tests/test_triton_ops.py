"""Every Triton implementation against the references of the ops, and the contracts that a GPU's kernels have to keep.

Without a GPU, Triton's interpreter runs the kernels: their arithmetic and their addresses, no timing and no races. It is
slow, so it gets the smaller of the declared cases, as QUICK says; on a GPU some of all sizes run, compiled.
"""

import os
from dataclasses import replace

import numpy as np
import pytest

from simplear_engine import _C
from simplear_engine.dtypes import decode_bfloat16, encode_bfloat16
from simplear_engine.errors import UnsupportedError
from simplear_engine.kernels import float8
from simplear_engine.kernels.op import Case, all_ops
from simplear_engine.kernels.quantization import QUANTIZED
from simplear_engine.kernels.triton_launch import has_implementation, launches_of
from simplear_engine.kernels.weight_tiles import pack_tiles
from simplear_engine.testing import triton_interpreter

pytest.importorskip("triton")
triton_interpreter.mend()

from simplear_engine.testing.triton_trial import TritonTrial  # noqa: E402
from simplear_engine.triton_program import TritonProgram  # noqa: E402

# NumPy, which the interpreter computes with, remarks on infinities that belong to the cases.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")

OPS = {name: op for name, op in all_ops().items() if has_implementation(name)}

WITH_MATRICES = ("linear", "gate_up_silu", "head_sample")

# Which cases the interpreter gets.
QUICK = {
    "embed": lambda a, d: a["N"] <= 7,
    "gumbel_noise": lambda a, d: a["V"] <= 37,
    "linear": lambda a, d: a["K"] <= 130 and a["N"] <= 5,
    "gate_up_silu": lambda a, d: a["I"] <= 48,
    "head_sample": lambda a, d: a["V"] <= 37,
    "rope_append": lambda a, d: a["N"] <= 7,
    "paged_attention": lambda a, d: (
        a["S"] == 1 or (a["S"] == 2 and a["G"] <= 2) or (a["H"] == 4 and a["S"] != 4 and d["out"] == "bfloat16")
    ),
    "verify_drafts": lambda a, d: a["W"] <= 5,
    "conv2d": lambda a, d: a["C"] <= 64 and a["M"] != 144,
    "group_norm": lambda a, d: a["C"] != 64 or (d["x"], d["y"]) == ("bfloat16", "float32"),
}


def chosen(name, op):
    """On a GPU a case costs half a second a kernel to compile, so it gets every sixth: SIMPLEAR_ALL_CASES=1 takes all."""
    found = [case for case in op.test_cases if case.dtypes.get("weight") not in QUANTIZED]
    if os.environ.get("SIMPLEAR_ALL_CASES") == "1":
        return found
    if triton_interpreter.is_interpreting():
        return [case for case in found if QUICK.get(name, lambda a, d: True)(case.axes, case.dtypes)]
    return found[::6]


def cases():
    """What a GPU takes of the declared cases; those with bfloat16 weights or an int8 cache once more in float8."""
    for name, op in OPS.items():
        for case in chosen(name, op):
            yield pytest.param(op, case, id=f"{name}-{case.id}")
            if case.dtypes.get("weight") == "bfloat16" and name in WITH_MATRICES:
                case = replace(case, dtypes={**case.dtypes, "weight": float8.NAME})
                yield pytest.param(op, case, id=f"{name}-{case.id}")
            if case.dtypes.get("k_cache") == "int8":
                case = replace(case, dtypes={**case.dtypes, "k_cache": float8.NAME, "v_cache": float8.NAME})
                yield pytest.param(op, case, id=f"{name}-{case.id}")


@pytest.mark.parametrize("op, case", list(cases()))
def test_matches_reference(op, case):
    trial = TritonTrial(op, case)
    trial.run()
    trial.check()


@pytest.mark.parametrize("weight", ["float32", "bfloat16", float8.NAME])
def test_sums_over_several_spans_of_k_match_the_reference(weight):
    dtypes = {"x": "float32" if weight == "float32" else "bfloat16", "weight": weight, "y": "float32"}
    trial = TritonTrial(OPS["linear"], Case({"N": 3, "M": 70, "K": 2100}, dtypes, {"accumulate": 1}))
    trial.run()
    trial.check()


def test_every_op_of_the_forward_pass_and_of_pictures_has_an_implementation():
    assert set(all_ops()) - set(OPS) <= {"read_stream"}


def test_absent_implementation_is_named():
    with pytest.raises(UnsupportedError, match="no_such_op has no Triton implementation"):
        launches_of("no_such_op")


def test_program_refuses_other_implementations():
    with pytest.raises(UnsupportedError, match="embed: a TritonProgram runs the implementation triton, got avx2"):
        TritonProgram().add("embed", "avx2", {})


def run(name, arrays, dtypes=None, outputs=(), **scalars):
    """An op on NumPy arrays, of which those that `dtypes` calls bfloat16 are rounded; the arrays of `outputs` afterwards."""
    dtypes, args = dtypes or {}, {}
    for key, array in arrays.items():
        if dtypes.get(key) == "bfloat16":
            args[key] = _C.Tensor.from_numpy(encode_bfloat16(array), "bfloat16")
        else:
            args[key] = _C.Tensor.from_numpy(np.array(array))
    program = TritonProgram()
    op = OPS[name]
    if "weight" in args and "weight" in op.layouts:
        parts = np.split(arrays["weight"], 2) if name == "gate_up_silu" else [arrays["weight"]]
        args["weight"] = pack_tiles(parts, dtypes["weight"])
    op.record(program, "triton", args, **scalars)
    program.run()
    program.read_back()
    return [decode_bfloat16(args[o].numpy()) if args[o].dtype == "bfloat16" else args[o].numpy() for o in outputs]


@pytest.mark.parametrize("weight", ["float32", "bfloat16"])
def test_row_of_a_product_is_the_same_alone_and_in_a_crowd(weight):
    rng = np.random.default_rng(1)
    n, m, k = 40, 33, 1100
    x, w = rng.standard_normal((n, k), np.float32), rng.standard_normal((m, k), np.float32)
    dtypes = {"weight": weight}

    def product(rows):
        arrays = {"x": x[rows], "norm_weight": np.ones(k, np.float32), "weight": w}
        arrays["y"] = np.empty((len(arrays["x"]), m), np.float32)
        return run("linear", arrays, dtypes, ["y"], eps=1e-6)[0]

    crowd = product(slice(None))
    np.testing.assert_array_equal(product(slice(17, 18))[0], crowd[17])
    np.testing.assert_array_equal(product(slice(10, 30))[7], crowd[17])


def test_row_of_gate_and_up_is_the_same_alone_and_in_a_crowd():
    rng = np.random.default_rng(2)
    n, i, k = 40, 20, 70
    x, w = rng.standard_normal((n, k), np.float32), rng.standard_normal((2 * i, k), np.float32)

    def product(rows):
        arrays = {"x": x[rows], "norm_weight": np.ones(k, np.float32), "weight": w}
        arrays["y"] = np.empty((len(arrays["x"]), i), np.float32)
        return run("gate_up_silu", arrays, {"weight": "bfloat16"}, ["y"], eps=1e-6)[0]

    np.testing.assert_array_equal(product(slice(17, 18))[0], product(slice(None))[17])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_query_is_the_same_alone_and_in_a_window_beside_others(dtype):
    """One query of a sequence of 200 keys, by itself, and as the third of five, the last of which brings
    no numbers, behind another sequence."""
    rng = np.random.default_rng(3)
    groups, heads, dim, table = 2, 6, 16, 13
    shape = (2 * table, groups, dim, 16)
    k_cache, v_cache = rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32).swapaxes(2, 3)
    tables = rng.permutation(2 * table).reshape(2, table).astype(np.int32)
    k_cache[tables[1, 201 // 16], :, :, 201 % 16] = v_cache[tables[1, 201 // 16], :, 201 % 16] = np.nan
    q = rng.standard_normal((7, heads * dim), np.float32)

    def attend(queries, lengths, contexts, tables):
        arrays = {
            "q": queries, "k_cache": k_cache, "v_cache": np.ascontiguousarray(v_cache),
            "query_start_loc": np.cumsum([0, *lengths]).astype(np.int32), "context_lens": np.array(contexts, np.int32),
            "block_table": tables, "out": np.empty_like(queries),
        }  # fmt: skip
        return run("paged_attention", arrays, {"k_cache": dtype, "v_cache": dtype}, ["out"], scale=0.25)[0]

    crowd = attend(q, [2, 5], [150, 202], tables)
    alone = attend(q[4:5], [1], [200], tables[1:])
    np.testing.assert_array_equal(alone[0], crowd[4])
    assert np.isnan(crowd[6]).all() and np.isfinite(crowd[:6]).all()


def test_draw_is_the_same_alone_and_in_a_crowd():
    rng = np.random.default_rng(4)
    codes, k, draws = 70, 40, 35
    hidden, w = rng.standard_normal((2 * draws, k), np.float32), rng.standard_normal((codes, k), np.float32)
    top_k = np.full(draws, codes, np.int32)
    top_k[21] = 9
    per_draw = {
        "guidance_scale": rng.uniform(1, 7, draws).astype(np.float32), "temperature": np.ones(draws, np.float32),
        "top_k": top_k, "top_p": np.ones(draws, np.float32), "position": np.arange(draws, dtype=np.int32),
        "seed": rng.integers(0, 2**64, draws, dtype=np.uint64),
    }  # fmt: skip

    def draw(which):
        n = len(which)
        arrays = {key: array[which] for key, array in per_draw.items()} | {
            "hidden": hidden, "rows": np.concatenate([which, which + draws]).astype(np.int32),
            "norm_weight": np.ones(k, np.float32), "weight": w,
            "cond_row": np.arange(n, dtype=np.int32), "uncond_row": np.arange(n, 2 * n, dtype=np.int32),
            "slot": np.arange(n, dtype=np.int32), "logits": np.zeros((2 * n, codes), np.float32),
            "guided": np.zeros((n, codes), np.float32), "token": np.zeros(n, np.int32),
            "log_prob": np.zeros(n, np.float32), "last_code": np.zeros(n, np.int32),
        }  # fmt: skip
        return run("head_sample", arrays, {"weight": "bfloat16"}, ["token", "log_prob"], eps=1e-6)

    crowd_token, crowd_log_prob = draw(np.arange(draws))
    token, log_prob = draw(np.array([20, 21]))
    np.testing.assert_array_equal(token, crowd_token[20:22])
    np.testing.assert_array_equal(log_prob, crowd_log_prob[20:22])
