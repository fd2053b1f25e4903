"""The five contracts of docs/architecture.md, each shown on whole images."""

import sys
import threading

import numpy as np
import pytest

from simplear_engine import Engine, _C
from simplear_engine.backend import KV_DTYPES
from simplear_engine.config import ModelConfig
from simplear_engine.dtypes import decode_bfloat16, encode_bfloat16
from simplear_engine.errors import InvalidRequestError
from simplear_engine.forward import cache_block_bytes, make_cache
from simplear_engine.kernels.gumbel_noise.noise import gumbel, gumbel_noise
from simplear_engine.kernels.packed_weight import pack_array
from simplear_engine.kernels.op import all_ops
from simplear_engine.weights import weight_specs

CONFIG = ModelConfig(
    hidden_size=64, intermediate_size=96, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=16, rope_theta=1e4,
    rms_norm_eps=1e-6, vocab_size=1064, tie_word_embeddings=True, max_position_embeddings=600, visual_offset=64,
)  # fmt: skip
DTYPES = ["float32", "bfloat16", "int8", "int4"]
PROMPT, NEGATIVE = [1, 2, 3] * 15, [4, 5] * 10


def random_weights(seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: (np.ones(spec.shape) if "norm" in name else rng.standard_normal(spec.shape) * 0.2).astype(np.float32)
        for name, spec in weight_specs(CONFIG).items()
    }


def make_engine(weights=None, **options):
    return Engine.from_weights(CONFIG, weights or random_weights(), **{"dtype": "float32", "threads": 2, **options})


def draw(engine, seed=7, prompt=PROMPT, side=9, **options):
    options = {"height": side * 16, "width": side * 16, "guidance_scale": 2.5, **options}
    negative = None if options["guidance_scale"] == 1 else NEGATIVE
    return engine.generate_from_ids(prompt, negative, seed=seed, **options)[0]


def assert_same(image, other):
    np.testing.assert_array_equal(image.tokens, other.tokens)
    np.testing.assert_array_equal(image.log_probs, other.log_probs)


# ---------------------------------------------------------------- C1: sampling is a function of (seed, position, logits)


@pytest.mark.parametrize(
    "key, counter, words",
    [
        (0, [0] * 4, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (2**64 - 1, [2**32 - 1] * 4, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            0x299F31D0A4093822,
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_words(key, counter, words):
    assert list(_C.philox(key, counter)) == words


def test_noise_is_the_exact_gumbel_transform_of_its_bits():
    bits = np.concatenate([
        np.array([0, 1, 2, 2**30, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]),
        np.random.default_rng(0).integers(0, 2**32, 100_000),
    ]).astype(np.uint32)  # fmt: skip
    uniform = (bits.astype(np.longdouble) + 0.5) / 2**32
    exact = -np.log(-np.log1p(-uniform))
    assert np.isfinite(gumbel(bits)).all()
    np.testing.assert_allclose(gumbel(bits), exact.astype(np.float64), rtol=1e-6, atol=4e-7)


def test_drawn_codes_follow_the_softmax():
    num_codes, draws = 24, 400_000
    logits = (np.random.default_rng(1).standard_normal(num_codes) * 1.5).astype(np.float32)
    counts = np.zeros(num_codes)
    noise = _C.Tensor.zeros([1000, num_codes], "float32")
    pool = _C.ThreadPool(2)
    for seed in range(draws // 1000):
        args = {
            "seed": _C.Tensor.from_numpy(np.full(1000, seed, np.uint64)),
            "position": _C.Tensor.from_numpy(np.arange(1000, dtype=np.int32)),
            "noise": noise,
        }
        all_ops()["gumbel_noise"].run(_C.chosen_isa(), pool, args)
        counts += np.bincount(np.argmax(logits + noise.numpy(), axis=1), minlength=num_codes)
    expected = draws * np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 49.7  # 0.1 % point of chi-squared with 23 degrees of freedom


@pytest.mark.parametrize("dtype", DTYPES)
def test_image_is_the_same_after_a_restart(dtype):
    with make_engine(dtype=dtype) as engine:
        first, other_seed = draw(engine), draw(engine, seed=8)
    with make_engine(dtype=dtype) as engine:
        assert_same(draw(engine), first)
    assert (other_seed.tokens != first.tokens).any()


# ---------------------------------------------------------------- C2: a row does not depend on its neighbours


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_of_a_product_is_the_same_alone_and_among_63_others(isa, dtype):
    rng = np.random.default_rng(0)
    linear, k, m = all_ops()["linear"], 130, 77
    weight = pack_array(rng.standard_normal((m, k)).astype(np.float32), dtype, pool := _C.ThreadPool(2))
    source = rng.standard_normal((64, k)).astype(np.float32)

    def product(rows, pool):
        x = _C.Tensor.zeros(rows.shape, dtype if dtype == "bfloat16" else "float32")
        _C.convert(_C.Tensor.from_numpy(np.ascontiguousarray(rows)), x, pool)
        y = _C.Tensor.zeros([len(rows), m], "float32")
        linear.run(isa, pool, {"x": x, "weight": weight, "y": y})
        return y.numpy().copy()

    among_others = product(source, pool)
    for row in range(64):
        np.testing.assert_array_equal(product(source[row : row + 1], pool)[0], among_others[row])
    np.testing.assert_array_equal(product(source[:7], _C.ThreadPool(1)), among_others[:7])


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dim", [64, 128])
def test_row_of_attention_is_the_same_alone_and_among_others(isa, dtype, out_dtype, dim):
    """A last query of 900 keys: alone on 1 to 5 threads, at the end of a window, and beside other sequences. The window
    begins before the 896 keys that end a chunk, and its other rows are what they are alone, too."""
    op, heads, groups, context, window = all_ops()["paged_attention"], 14, 2, 900, 20
    rng = np.random.default_rng(0)
    table = rng.permutation(2 * 57).reshape(2, 57).astype(np.int32)
    keys = rng.standard_normal((2 * 57, groups, dim, 16)).astype(np.float32)
    values = rng.standard_normal((2 * 57, groups, 16, dim)).astype(np.float32)
    q = rng.standard_normal((window, heads * dim)).astype(np.float32)
    caches = {}
    for name, array in {"k_cache": keys, "v_cache": values}.items():
        if dtype == "int8":
            scale = rng.random((2 * 57, groups, 16), np.float32) / 40
            caches[f"{name[0]}_scale"] = _C.Tensor.from_numpy(scale)
            caches[name] = _C.Tensor.from_numpy(np.rint(array * 25).clip(-127, 127).astype(np.int8))
        else:
            caches[name] = _C.Tensor.zeros(array.shape, dtype)
            _C.convert(_C.Tensor.from_numpy(array), caches[name], _C.ThreadPool(2))

    def attended(rows, query_start_loc, context_lens, sequences, threads):
        out = _C.Tensor.zeros(rows.shape, out_dtype)
        args = {
            "q": rows, "query_start_loc": np.array(query_start_loc, np.int32),
            "context_lens": np.array(context_lens, np.int32), "block_table": table[sequences],
        }  # fmt: skip
        args = {name: _C.Tensor.from_numpy(np.ascontiguousarray(array)) for name, array in args.items()}
        op.run(isa, _C.ThreadPool(threads), {**caches, **args, "out": out}, scale=0.125)
        return out.numpy().copy()

    alone = attended(q[-1:], [0, 1], [context], [0], 1)[0]
    for threads in (2, 3, 5):
        np.testing.assert_array_equal(attended(q[-1:], [0, 1], [context], [0], threads)[0], alone)
        in_window = attended(q, [0, window], [context], [0], threads)
        np.testing.assert_array_equal(in_window[-1], alone)
        np.testing.assert_array_equal(attended(q, [0, 4, window], [77, context], [1, 0], threads)[-1], alone)
    for row in range(window):
        one = attended(q[row : row + 1], [0, 1], [context - window + 1 + row], [0], 1)[0]
        np.testing.assert_array_equal(in_window[row], one)


@pytest.mark.parametrize("dtype", DTYPES)
def test_image_is_the_same_alone_and_in_a_crowd(dtype):
    with make_engine(dtype=dtype) as engine:
        alone = draw(engine)
        crowd = [threading.Thread(target=draw, args=(engine, seed, [seed] * (seed + 3), 2 + seed)) for seed in range(7)]
        for thread in crowd:
            thread.start()
        images = [draw(engine) for _ in range(3)]
        for thread in crowd:
            thread.join()
    for image in images:
        assert_same(image, alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_image_with_an_int8_cache_is_the_same_alone_in_a_crowd_and_speculated(dtype):
    with make_engine(dtype=dtype, kv_dtype="int8") as engine:
        assert engine.kv_dtype == "int8"
        alone = draw(engine)
        assert_same(draw(engine, speculation="jacobi", draft_window=7), alone)
        crowd = [threading.Thread(target=draw, args=(engine, seed, [seed] * (seed + 3), 2 + seed)) for seed in range(7)]
        for thread in crowd:
            thread.start()
        images = [draw(engine), draw(engine, speculation="jacobi")]
        for thread in crowd:
            thread.join()
    for image in images:
        assert_same(image, alone)
    with make_engine(dtype=dtype, kv_dtype="int8", threads=1, prefill_chunk=5) as engine:
        assert_same(draw(engine), alone)


def test_int8_cache_changes_logits_little():
    tokens = np.arange(100) * 7 % CONFIG.num_codes
    scores = {}
    for kv_dtype in KV_DTYPES:
        with make_engine(kv_dtype=kv_dtype) as engine:
            scores[kv_dtype] = engine.score_from_ids(PROMPT, tokens)
    for kv_dtype in ("bfloat16", "int8"):
        error = np.sqrt(np.mean((scores[kv_dtype] - scores["float32"]) ** 2)) / scores["float32"].std()
        assert 0 < error < 0.02, kv_dtype


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_block_bytes_are_those_of_the_cache(kv_dtype):
    tensors = [tensor for layer in make_cache(CONFIG, 3, kv_dtype) for tensor in vars(layer).values() if tensor]
    assert sum(tensor.numpy().nbytes for tensor in tensors) == 3 * cache_block_bytes(CONFIG, kv_dtype)


def test_unknown_kv_dtype_is_refused_with_what_is_allowed():
    with pytest.raises(
        InvalidRequestError, match="kv_dtype: expected auto, float32, bfloat16 or int8 on cpu, got 'int4'"
    ):
        make_engine(kv_dtype="int4")


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_image_is_the_same_for_every_number_of_threads(isa, dtype, monkeypatch):
    monkeypatch.setenv("SIMPLEAR_CPU_ISA", isa)
    images = []
    for threads in (1, 2, 3):
        with make_engine(threads=threads, dtype=dtype) as engine:
            images.append(draw(engine))
    assert_same(images[1], images[0])
    assert_same(images[2], images[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_image_is_the_same_at_every_prefill_chunk_size(dtype):
    images, scores = [], []
    for chunk in (1, 2, 3, 5, 16, 17, 64, 256):
        with make_engine(dtype=dtype, prefill_chunk=chunk, max_pairs=1) as engine:
            images.append(draw(engine, side=4))
            scores.append(engine.score_from_ids(PROMPT, images[0].tokens))
    for image, score in zip(images, scores, strict=True):
        assert_same(image, images[0])
        np.testing.assert_array_equal(score, scores[0])


def test_image_is_the_same_after_a_neighbour_was_cancelled():
    class Enough(Exception):
        pass

    def stop(done, total):
        if done > 5:
            raise Enough

    with make_engine() as engine:
        alone = draw(engine)
        neighbours = []

        def cancelled_neighbour():
            with pytest.raises(Enough):
                draw(engine, seed=1, side=20, on_progress=stop)
            neighbours.append("cancelled")

        threads = [threading.Thread(target=cancelled_neighbour) for _ in range(3)]
        for thread in threads:
            thread.start()
        image = draw(engine)
        for thread in threads:
            thread.join()
        assert_same(draw(engine), alone)
        stats = engine.stats()
    assert_same(image, alone)
    assert neighbours == ["cancelled"] * 3
    assert stats["num_free_blocks"] == stats["num_blocks"]


def attended(impl, cache_dtype, out_dtype, flaw):
    """Rows of a window at positions 16 to 19; `flaw` stands in key and value of position 18."""
    rng = np.random.default_rng(0)
    keys, values = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 2, 64, 16), (2, 2, 16, 64)))
    if flaw is not None:
        keys[1, :, 5, 2] = values[1, :, 2, 7] = flaw
    as_cached = (lambda x: _C.Tensor.from_numpy(encode_bfloat16(x), "bfloat16")) if cache_dtype == "bfloat16" else None
    tensor = as_cached or _C.Tensor.from_numpy
    out = _C.Tensor.zeros([4, 14 * 64], out_dtype)
    args = {
        "q": _C.Tensor.from_numpy(rng.standard_normal((4, 14 * 64)).astype(np.float32)),
        "k_cache": tensor(keys), "v_cache": tensor(values), "out": out,
        "query_start_loc": _C.Tensor.from_numpy(np.array([0, 4], np.int32)),
        "context_lens": _C.Tensor.from_numpy(np.array([20], np.int32)),
        "block_table": _C.Tensor.from_numpy(np.array([[0, 1]], np.int32)),
    }  # fmt: skip
    all_ops()["paged_attention"].run(impl, _C.ThreadPool(1), args, scale=0.125)
    return out.numpy() if out_dtype == "float32" else decode_bfloat16(out.numpy())


@pytest.mark.parametrize("flaw", [np.nan, np.inf])
@pytest.mark.parametrize("cache_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("impl", [*_C.available_isas(), "simt"])
def test_draft_that_gives_no_numbers_spoils_no_row_before_it(impl, cache_dtype, out_dtype, flaw):
    """A wrong draft may be a token that the network has no numbers for; a picture without drafts never meets it."""
    found = attended(impl, cache_dtype, out_dtype, flaw)
    np.testing.assert_array_equal(found[:2], attended(impl, cache_dtype, out_dtype, None)[:2])
    assert not np.isfinite(found[2:]).all(axis=1).any()


# ---------------------------------------------------------------- C3: redrawing a draft with its own noise verifies it


@pytest.mark.parametrize("dtype", DTYPES)
def test_draft_is_verified_by_comparing_integers(dtype):
    """All positions of a drafted image redrawn in one teacher-forced pass: equal up to the first wrong draft, and right
    there. This is what speculative decoding rests on."""
    with make_engine(dtype=dtype) as engine:
        image = draw(engine, seed=3, guidance_scale=1)
        draft = image.tokens.reshape(-1).copy()
        noise = np.stack([gumbel_noise(3, position, CONFIG.num_codes) for position in range(draft.size)])

        def redrawn(draft):
            return np.argmax(engine.score_from_ids(PROMPT, draft) + noise, axis=1)

        np.testing.assert_array_equal(redrawn(draft), draft)
        wrong = draft.copy()
        wrong[11] = (wrong[11] + 1) % CONFIG.num_codes
        again = redrawn(wrong)
    np.testing.assert_array_equal(again[:12], draft[:12])
    assert (again != wrong).argmax() == 11


# ---------------------------------------------------------------- C4: a step touches no Python


def test_engine_draws_while_python_is_locked():
    """With thread switching off, a busy loop keeps the GIL for good: only an engine without Python gets on."""
    interval = sys.getswitchinterval()
    with make_engine() as engine:
        request = _C.Request()
        request.prompt, request.num_image_tokens, request.top_k = PROMPT, 100, CONFIG.num_codes
        engine._core.submit(request)
        sys.setswitchinterval(1000)
        try:
            turns = 0
            while request.num_done < 100 and turns < 200_000_000:
                turns += 1
        finally:
            sys.setswitchinterval(interval)
        assert request.num_done == 100
        assert request.wait(10)


# ---------------------------------------------------------------- C5: weights are borrowed


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_change_of_the_weights_is_seen(dtype):
    weights = random_weights()
    with make_engine(weights, dtype=dtype) as engine:
        before = draw(engine)
        for name, array in weights.items():
            array += 0.1 * random_weights(1)[name]
        engine.weights_changed()
        after = draw(engine)
        assert engine.weights_version == 1
    with make_engine(weights, dtype=dtype) as fresh:
        assert_same(draw(fresh), after)
    assert (before.tokens != after.tokens).any()


def test_optimizer_step_is_seen_by_the_engine():
    torch = pytest.importorskip("torch")
    parameters = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in random_weights().items()}
    with make_engine({name: p.detach() for name, p in parameters.items()}) as engine:
        before = engine.score_from_ids(PROMPT, [1, 2, 3])
        for p in parameters.values():
            p.grad = torch.ones_like(p)
        torch.optim.SGD(parameters.values(), lr=0.05).step()
        engine.weights_changed()
        after = engine.score_from_ids(PROMPT, [1, 2, 3])
    with make_engine({name: p.detach().numpy().copy() for name, p in parameters.items()}) as fresh:
        np.testing.assert_array_equal(fresh.score_from_ids(PROMPT, [1, 2, 3]), after)
    assert np.abs(after - before).max() > 0.01


def test_weights_are_borrowed_not_copied():
    weights = random_weights()
    with make_engine(weights) as engine:
        table = weights["model.embed_tokens.weight"]
        assert engine._weights.embedding.address == table.ctypes.data


def test_weight_change_waits_for_the_step_under_way():
    weights = random_weights()
    with make_engine(weights) as engine:
        worker = threading.Thread(target=draw, args=(engine,), kwargs={"side": 20})
        worker.start()
        for _ in range(20):
            engine.weights_changed()
        worker.join()
        assert engine.weights_version == 20
