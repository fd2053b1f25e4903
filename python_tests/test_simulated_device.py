"""The whole GPU engine, on the simulated device: graphs, padding, steps ahead of the host, copies, errors.

The simulated device runs the CPU's implementations of the ops, so whatever the two engines draw must be equal bit for bit:
a difference is a fault of the runtime and not of rounding. It executes as late as it may, so what forgets to wait fails.
"""

import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from simplear_engine import CancelledError, CapacityError, Engine, NumericalError, UnsupportedError, _C, device_backend
from simplear_engine.config import ModelConfig
from simplear_engine.engine_options import check_gpu, open_backend, where_pixels_are_decoded
from simplear_engine.errors import InternalError, InvalidRequestError
from simplear_engine.kernels import float8
from simplear_engine.weights import weight_specs

CONFIG = ModelConfig(
    hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4,
    rms_norm_eps=1e-6, vocab_size=264, tie_word_embeddings=True, max_position_embeddings=400, visual_offset=64,
)  # fmt: skip
NEGATIVE = [4, 5] * 10
OPS_OF_A_STEP = ("embed", "linear", "rope_append", "paged_attention", "gate_up_silu", "head_sample", "verify_drafts")


def random_weights(seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: (np.ones(spec.shape) if "norm" in name else rng.standard_normal(spec.shape) * 0.3).astype(np.float32)
        for name, spec in weight_specs(CONFIG).items()
    }


def make_engine(device, weights=None, **options):
    weights = random_weights() if weights is None else weights
    return Engine.from_weights(CONFIG, weights, **{"device": device, "dtype": "float32", "threads": 1, **options})


def draw(engine, seed=7, prompt_length=30, side=7, **options):
    options = {"height": side * 16, "width": side * 16, "guidance_scale": 2.5, "speculation": None, **options}
    negative = None if options["guidance_scale"] == 1 else NEGATIVE
    return engine.generate_from_ids([1 + seed % 3, 2] * prompt_length, negative, seed=seed, **options)[0]


def assert_same(image, other):
    np.testing.assert_array_equal(image.tokens, other.tokens)
    np.testing.assert_array_equal(image.log_probs, other.log_probs)


@pytest.fixture(scope="module")
def cpu():
    with make_engine("cpu") as engine:
        yield engine


@pytest.fixture(scope="module")
def device():
    with make_engine("simulated") as engine:
        yield engine


# ---------------------------------------------------------------- the same images


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 1.0},
        {"temperature": 0.0},
        {"top_k": 20, "top_p": 0.9},
        {"side": 1},
        {"prompt_length": 150},
        {"speculation": "jacobi", "draft_window": 4, "temperature": 0.2},
        {"speculation": "jacobi", "draft_window": 64},
        {"speculation": "jacobi", "draft_window": 5, "draft_source": "left", "temperature": 0.2},
    ],
)
def test_image_is_the_one_that_the_cpu_draws(cpu, device, options):
    image, expected = draw(device, **options), draw(cpu, **options)
    assert_same(image, expected)
    if options.get("draft_source") == "left" or "speculation" not in options:
        assert image.num_steps == expected.num_steps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pixels_are_decoded_on_the_device_and_are_the_cpus(dtype):
    options = {"dtype": dtype, "threads": 1, "max_pairs": 2}
    with (
        Engine.from_pretrained("default", device="cpu", **options) as cpu,
        Engine.from_pretrained("default", device="simulated", **options) as device,
    ):
        for side in (64, 128, 64):
            asked = {"seed": 1, "num_images": 3, "height": side, "width": side}
            images, expected = (engine.generate("a red apple", **asked) for engine in (device, cpu))
            for image, other in zip(images, expected, strict=True):
                np.testing.assert_array_equal(image.pixels, other.pixels)


def test_pixels_are_the_cpus_where_triton_is_missing(monkeypatch, caplog):
    monkeypatch.setattr(device_backend, "has_triton", lambda op: False)
    assert where_pixels_are_decoded(SimpleNamespace(is_simulated=True, device="simulated:0")) == "simulated:0"
    assert where_pixels_are_decoded(SimpleNamespace(is_simulated=False, device="cuda:0")) == "cpu"
    assert "pip install triton" in caplog.text
    monkeypatch.setattr(device_backend, "has_triton", lambda op: True)
    assert where_pixels_are_decoded(SimpleNamespace(is_simulated=False, device="cuda:0")) == "cuda:0"


def test_image_is_the_same_where_only_the_host_can_make_drafts(cpu, device):
    assert_same(draw(device, speculation="jacobi", draft_source="context"), draw(cpu))


def test_image_is_the_same_whatever_windows_auto_chooses(cpu, device):
    """Steps of the device are begun before the host knows what the ones before them drew; windows change between them."""
    expected = [draw(cpu, seed=seed, side=11) for seed in range(3)]
    before = device.stats()["num_drafts_verified"].sum()
    for _ in range(2):
        for seed in range(3):
            assert_same(draw(device, seed=seed, side=11, speculation="auto"), expected[seed])
    with ThreadPoolExecutor(3) as askers:
        together = askers.map(lambda seed: draw(device, seed=seed, side=11, speculation="auto"), range(3))
        for image, other in zip(together, expected, strict=True):
            assert_same(image, other)
    assert device.stats()["num_drafts_verified"].sum() > before


@pytest.mark.parametrize("mode", ["ratio", "simplear", "neighbours"])
def test_inexact_modes_are_the_cpus(device, mode):
    with pytest.raises(UnsupportedError, match=f'"{mode}" runs on the CPU only, and this engine is on simulated'):
        draw(device, speculation=mode)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_image_is_the_one_that_the_cpu_draws_in_other_dtypes(dtype):
    with make_engine("cpu", dtype=dtype) as cpu, make_engine("simulated", dtype=dtype) as device:
        assert_same(draw(device), draw(cpu))


def crowd(engine, count=7):
    """Images of different lengths, guided and not, with and without guesses, asked for at once."""
    images, errors = [None] * count, []

    def ask(i):
        options = [{}, {"guidance_scale": 1.0}, {"speculation": "jacobi", "draft_window": 3}][i % 3]
        try:
            images[i] = draw(engine, seed=i, prompt_length=5 + 20 * i, side=3 + i % 4, **options)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return images


def test_images_are_the_same_in_a_crowd_that_comes_and_goes(cpu):
    with make_engine("simulated", max_pairs=3, prefill_chunk=40) as device:
        for image, expected in zip(crowd(device), crowd(cpu), strict=True):
            assert_same(image, expected)
        assert device.stats()["num_free_blocks"] == device.stats()["num_blocks"]


def test_scores_are_those_of_the_cpu(cpu, device):
    tokens = np.random.default_rng(0).integers(0, CONFIG.num_codes, 300)
    np.testing.assert_array_equal(device.score_from_ids([1, 2, 3], tokens), cpu.score_from_ids([1, 2, 3], tokens))


def test_scores_survive_a_picture_that_begins_in_the_same_step(cpu, device):
    """A picture's first draw is padded to the draws of a bucket, which has fewer rows of logits for them."""
    expected = cpu.score_from_ids([1], [5, 6, 7])
    for engine in (cpu, device):
        engine.score_from_ids([3], [9] * 60)  # leaves other rows behind
        request = _C.Request()
        request.prompt, request.forced_codes, request.num_image_tokens = [1], [5, 6, 7], 3
        request.top_k = CONFIG.num_codes
        request.scores = _C.Tensor.zeros([3, CONFIG.num_codes], "float32")
        with engine._core.pause(weights_change=False):  # both are planned together
            engine._core.submit(request)
            thread = threading.Thread(target=draw, args=(engine,), kwargs={"side": 1, "guidance_scale": 1.0})
            thread.start()
            while engine.stats()["num_waiting"] < 2:
                pass
        thread.join()
        assert request.wait(30)
        np.testing.assert_array_equal(request.scores.numpy(), expected)


def test_changed_weights_are_seen():
    weights = random_weights()
    with make_engine("simulated", weights) as device:
        before = draw(device)
        for name, other in random_weights(1).items():
            weights[name][...] = other
        device.weights_changed()
        after = draw(device)
    assert (before.tokens != after.tokens).any()
    with make_engine("cpu", random_weights(1)) as cpu:
        assert_same(after, draw(cpu))


def test_weights_on_the_device_are_borrowed_and_their_changes_seen(cpu):
    gpu = _C.Device("simulated")
    weights = {name: gpu.upload(_C.Tensor.from_numpy(array)) for name, array in random_weights().items()}
    with make_engine("simulated", weights) as device:
        assert_same(draw(device), draw(cpu))
        for name, array in random_weights(1).items():
            gpu.copy(_C.Tensor.from_numpy(array), weights[name])
        device.wait_stream(gpu.stream)
        device.weights_changed()
        changed = draw(device)
    with make_engine("cpu", random_weights(1)) as other:
        assert_same(changed, draw(other))


def test_weights_on_another_device_are_refused():
    other = _C.Device("simulated", 1)
    weights = {name: other.upload(_C.Tensor.from_numpy(array)) for name, array in random_weights().items()}
    with pytest.raises(InvalidRequestError, match="expected a tensor on cpu or simulated:0, got one on simulated:1"):
        make_engine("simulated", weights)
    with pytest.raises(InvalidRequestError, match="expected a tensor on cpu, got one on simulated:1"):
        make_engine("cpu", weights)


def test_stream_that_is_none_is_refused(cpu, device):
    with pytest.raises(InvalidRequestError, match="there is no stream 12345"):
        device.wait_stream(12345)
    with pytest.raises(InvalidRequestError, match="stream: expected a torch.cuda.Stream"):
        device.release_to_stream("default")
    with pytest.raises(UnsupportedError, match="computes on the CPU"):
        cpu.wait_stream(0)


# ---------------------------------------------------------------- with the CUDA kernels, run on the host

KERNELS = [name for name, impls in _C.cuda_op_impls().items() if "simt" in impls]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_draw_the_same_image_alone_in_a_crowd_and_speculated(monkeypatch, dtype):
    with make_engine("cpu", dtype=dtype) as cpu:
        expected = [draw(cpu, seed=seed, prompt_length=4 + seed, side=2) for seed in range(3)]
    monkeypatch.setenv("SIMPLEAR_OPS", ",".join(f"{name}=simt" for name in KERNELS if name in OPS_OF_A_STEP))
    with make_engine("simulated", dtype=dtype, max_pairs=3) as device:
        alone = [draw(device, seed=seed, prompt_length=4 + seed, side=2) for seed in range(3)]
        together = device.generate_from_ids(
            [1, 2] * 4, NEGATIVE, seed=0, num_images=3, height=32, width=32, guidance_scale=2.5
        )
        speculated = draw(device, seed=0, prompt_length=4, side=2, speculation="jacobi", draft_window=4)
    assert_same(together[0], alone[0])
    assert_same(speculated, alone[0])
    for image, other in zip(alone, expected, strict=True):
        np.testing.assert_array_equal(image.tokens, other.tokens)
        np.testing.assert_allclose(image.log_probs, other.log_probs, atol=1e-4 if dtype == "float32" else 0.05)


def rounded_to_float8(weight):
    codes, scales = float8.quantize_rows(weight)
    return float8.decode(codes) * scales[:, None]


def test_float8_draws_what_its_rounded_weights_draw(monkeypatch):
    weights = random_weights()
    # The head is rounded; the table of embeddings, which is the same tensor, is not.
    rounded = {"lm_head.weight": rounded_to_float8(weights["model.embed_tokens.weight"])}
    for name, weight in weights.items():
        is_rounded = weight.ndim == 2 and name != "model.embed_tokens.weight"
        rounded[name] = rounded_to_float8(weight) if is_rounded else weight
    prompt = {"prompt_length": 4, "side": 3}
    with Engine.from_weights(replace(CONFIG, tie_word_embeddings=False), rounded, device="cpu", threads=1) as cpu:
        expected = [draw(cpu, seed=seed, **prompt) for seed in range(3)]
        scores = cpu.score_from_ids([1, 2] * 4, expected[0].tokens)
    with make_engine("cpu", weights) as cpu:
        unrounded = cpu.score_from_ids([1, 2] * 4, expected[0].tokens)
    monkeypatch.setenv("SIMPLEAR_OPS", ",".join(f"{name}=simt" for name in KERNELS if name in OPS_OF_A_STEP))
    with make_engine("simulated", weights, dtype=float8.NAME, max_pairs=3) as device:
        assert device.dtype == float8.NAME
        alone = [draw(device, seed=seed, **prompt) for seed in range(3)]
        assert_same(draw(device, seed=0, speculation="jacobi", draft_window=4, **prompt), alone[0])
        scored = device.score_from_ids([1, 2] * 4, expected[0].tokens)
        device.weights_changed()
        assert_same(draw(device, seed=0, **prompt), alone[0])
    for image, other in zip(alone, expected, strict=True):
        np.testing.assert_array_equal(image.tokens, other.tokens)
    # What is left is the rounding of activations to bfloat16; that of the weights is several times as much.
    assert np.abs(scored - scores).max() < 0.12 < np.abs(unrounded - scores).max() / 3


def test_float8_cache_scores_like_one_without_rounding(monkeypatch):
    weights, tokens = random_weights(), np.random.default_rng(0).integers(0, CONFIG.num_codes, 40)
    with make_engine("cpu", weights) as cpu:
        expected = cpu.score_from_ids([1, 2] * 4, tokens)
    monkeypatch.setenv("SIMPLEAR_OPS", "rope_append=simt,paged_attention=simt")
    with make_engine("simulated", weights, kv_dtype=float8.NAME, max_pairs=3) as device:
        assert device.kv_dtype == float8.NAME
        scores = device.score_from_ids([1, 2] * 4, tokens)
        alone = [draw(device, seed=seed) for seed in range(3)]
        with ThreadPoolExecutor(3) as crowd:
            together = list(crowd.map(lambda seed: draw(device, seed=seed), range(3)))
        for image, other in zip(together, alone, strict=True):
            assert_same(image, other)
        assert_same(draw(device, seed=0, speculation="jacobi", draft_window=4), alone[0])
    error = np.sqrt(np.mean((scores - expected) ** 2)) / expected.std()
    assert 0.02 < error < 0.12  # of int8 0.016, of bfloat16 0.008


def test_float8_cache_is_refused_where_its_kernels_do_not_run():
    with pytest.raises(InvalidRequestError, match="kv_dtype: expected auto, .* or int8 on cpu, got 'float8_e4m3'"):
        make_engine("cpu", kv_dtype=float8.NAME)
    with pytest.raises(UnsupportedError, match="rope_append.k_cache: expected .* int8 by .*, got float8_e4m3"):
        make_engine("simulated", kv_dtype=float8.NAME)


@pytest.mark.parametrize(
    "device, dtype, impl, error, message",
    [
        (
            "cpu",
            float8.NAME,
            "",
            InvalidRequestError,
            "dtype: expected auto, .* int8 or int4 on cpu, got 'float8_e4m3'",
        ),
        ("simulated", float8.NAME, "", UnsupportedError, "linear as .* takes float32, .*int4, got float8_e4m3"),
        ("simulated", "int8", "linear=simt", UnsupportedError, "linear as simt takes .* float8_e4m3, got int8"),
    ],
)
def test_dtype_that_the_kernels_do_not_take_is_refused(monkeypatch, device, dtype, impl, error, message):
    monkeypatch.setenv("SIMPLEAR_OPS", impl)
    with pytest.raises(error, match=message):
        make_engine(device, dtype=dtype)


# ---------------------------------------------------------------- the host stays out of the way


def test_host_plans_a_batch_once_and_not_every_step(device):
    before, graphs = device._runner.num_uploads, device._runner.num_graphs
    image = draw(device, side=15)
    assert image.num_steps > 220
    # A prompt in chunks, its last token, and then all of the image; no graph is recorded in the middle of it.
    assert device._runner.num_uploads - before <= 4
    assert device._runner.num_graphs <= graphs + 1


def test_progress_is_reported_while_the_device_runs_ahead(device):
    seen = set()
    draw(device, side=15, on_progress=lambda done, total: seen.add(done))
    assert 225 in seen


# ---------------------------------------------------------------- what goes wrong


def test_cancelled_request_leaves_the_device_to_the_others(cpu, device):
    class Enough(Exception):
        pass

    def stop(done, total):
        raise Enough

    others = []
    thread = threading.Thread(target=lambda: others.append(draw(device, seed=3, side=15)))
    thread.start()
    with pytest.raises(Enough):
        draw(device, seed=4, side=18, on_progress=stop)
    thread.join()
    assert_same(others[0], draw(cpu, seed=3, side=15))
    assert device.stats()["num_free_blocks"] == device.stats()["num_blocks"]


def test_image_without_numbers_does_not_disturb_its_neighbours(cpu):
    weights = random_weights()
    weights["model.embed_tokens.weight"][9] = np.nan
    with make_engine("simulated", weights, max_pairs=2) as device:
        images = []
        thread = threading.Thread(target=lambda: images.append(draw(device, seed=5, side=15)))
        thread.start()
        with pytest.raises(NumericalError, match="NaN or infinity"):
            device.generate_from_ids([1, 9], NEGATIVE, height=240, width=240, guidance_scale=2.0)
        thread.join()
    assert_same(images[0], draw(cpu, seed=5, side=15))


def test_device_that_fails_ends_its_requests_and_not_the_process():
    """As after an illegal address, every call of the device fails from then on."""
    code = textwrap.dedent("""
        import test_simulated_device as t
        from simplear_engine import _C
        from simplear_engine.errors import InternalError
        from simplear_engine.kernels.op import all_ops

        engine = t.make_engine("simulated")
        zeros = lambda *shape: engine._backend.upload(_C.Tensor.zeros(shape, "float32"))
        weight = t.device_backend.PackedWeight(zeros(8 * 20000), (8, 20000))
        fields = all_ops()["linear"].fields(
            {"x": zeros(1, 20000), "weight": weight, "y": zeros(1, 8)}, {"accumulate": 0}, "simt"
        )
        engine._program.add("linear", "simt", fields)  # needs more shared memory than there is
        for _ in range(2):
            try:
                t.draw(engine, prompt_length=150)
            except InternalError as error:
                print(error)
        engine.close()
        print("alive")
    """)
    folder = str(Path(__file__).parent)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=folder)
    lines = found.stdout.splitlines()
    assert lines[-1:] == ["alive"] and len(lines) == 3, found.stderr
    assert all("shared memory" in line for line in lines[:2])


def test_closed_engine_ends_its_requests():
    engine = make_engine("simulated")
    failed = []

    def ask():
        try:
            draw(engine, side=15)
        except CancelledError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while engine.stats()["num_steps"] == 0:
        pass
    engine.close()
    thread.join()
    assert failed


@pytest.fixture
def small_device():
    """Simulated devices that are opened during the test have 1 MB."""
    _C.describe_simulated_device(total_memory=1 << 20)
    yield
    _C.describe_simulated_device()


def test_too_little_memory_says_what_is_needed_and_what_is_there(small_device):
    weights = random_weights()
    with pytest.raises(CapacityError, match=r"simulated:1: out of memory, \d+ bytes were asked for, \d+ are free"):
        make_engine("simulated:1", weights, kv_cache_bytes=8 << 20)


def test_old_gpu_is_refused_by_its_capability():
    old = {"name": "Tesla T4", "capability": (7, 5), "driver_version": 13000, "runtime_version": 13000}
    with pytest.raises(
        UnsupportedError, match="cuda:0: expected a GPU of compute capability 8.0 or newer, got Tesla T4"
    ):
        check_gpu("cuda:0", old)


def test_old_driver_is_refused_by_its_version():
    old = {"name": "NVIDIA A100", "capability": (8, 0), "driver_version": 12040, "runtime_version": 13000}
    with pytest.raises(UnsupportedError, match="knows CUDA 12.4, this engine was built with 13.0"):
        check_gpu("cuda:0", old)


def test_auto_never_takes_the_simulated_device(monkeypatch, caplog):
    monkeypatch.setattr(_C, "cuda_devices", lambda: ([], "no device", False))
    with caplog.at_level("INFO", "simplear_engine"), make_engine("auto") as engine:
        assert engine.device == "cpu"
    assert "no GPU (no device): computing on the CPU" in caplog.text


def test_auto_refuses_a_gpu_that_does_not_work(monkeypatch):
    monkeypatch.setattr(_C, "cuda_devices", lambda: ([], "driver too old", True))
    with pytest.raises(UnsupportedError, match="driver too old"):
        make_engine("auto")


def test_gpu_that_is_not_there_is_named_beside_those_that_are(monkeypatch):
    h200 = {"name": "NVIDIA H200", "capability": (9, 0), "driver_version": 13000, "runtime_version": 13000}
    monkeypatch.setattr(_C, "cuda_devices", lambda: ([h200], "", False))
    with pytest.raises(UnsupportedError, match=r"cuda:3.*expected one of cuda:0 \(NVIDIA H200\)"):
        make_engine("cuda:3")


@pytest.mark.parametrize(
    "device", ["gpu", "cuda:", "cuda:x", "cpu:1", "simulated:", "simulated:9999999999999", 0, None]
)
def test_unknown_device_is_refused(device):
    with pytest.raises(InvalidRequestError, match="device: expected"):
        make_engine(device)


# ---------------------------------------------------------------- sizes of steps, and kernels that are bound to them


def make_plan(**counts):
    plan = _C.StepPlan(max_tokens=700, max_pairs=130, max_logit_rows=260, max_draws=130, max_blocks_per_seq=4)
    for name, count in counts.items():
        setattr(plan, name, count)
    return plan


@pytest.mark.parametrize("pairs", [1, 2, 4, 8, 9, 31, 100, 128])
def test_padding_of_a_decoding_step_is_less_than_a_quarter(pairs):
    plan = make_plan(
        num_tokens=2 * pairs, num_seqs=2 * pairs, num_logit_rows=2 * pairs, num_draws=pairs, num_windows=pairs
    )
    bucket = _C.bucket_for(plan)
    assert _C.is_recorded(plan) and bucket in _C.all_buckets(plan)
    for name, size in bucket.items():
        assert getattr(plan, name) <= size
    assert bucket["num_tokens"] < 2.5 * pairs


def test_every_step_has_one_of_a_short_list_of_sizes():
    rng, known = np.random.default_rng(0), _C.all_buckets(make_plan())
    assert len(known) < 120
    for _ in range(2000):
        tokens, logit_rows = int(rng.integers(1, 701)), int(rng.integers(0, 261))
        logit_rows = min(tokens, logit_rows)
        draws = int(rng.integers(0, min(logit_rows, 130) + 1))
        plan = make_plan(
            num_tokens=tokens, num_seqs=int(rng.integers(1, min(tokens, 260) + 1)), num_logit_rows=logit_rows,
            num_draws=draws, num_windows=int(rng.integers(min(draws, 1), draws + 1)),
        )  # fmt: skip
        bucket = _C.bucket_for(plan)
        assert bucket in known
        assert all(getattr(plan, name) <= size for name, size in bucket.items())
        _C.pad(plan, num_codes=9)
        assert plan.query_start_loc.numpy()[plan.num_seqs] <= tokens
        assert (plan.slot_mapping.numpy()[tokens : plan.num_tokens] == -1).all()


@pytest.mark.parametrize(
    "tokens, draws, rows_of_a_draw", [(6, 3, 2), (258, 1, 2), (5, 5, 1), (34, 17, 2), (300, 100, 2)]
)
def test_no_padding_row_is_left_to_be_scored(tokens, draws, rows_of_a_draw):
    """Rows of logits that no draw refers to cost another pass over the head's weights."""
    rows = draws * rows_of_a_draw
    plan = make_plan(num_tokens=tokens, num_seqs=rows, num_logit_rows=rows, num_draws=draws, num_windows=draws)
    cond, uncond = plan.cond_row.numpy(), plan.uncond_row.numpy()
    cond[:draws] = np.arange(draws)
    uncond[:draws] = draws + np.arange(draws) if rows_of_a_draw == 2 else -1
    _C.pad(plan, num_codes=9)
    assert plan.num_draws > draws or plan.num_logit_rows == rows
    drawn = {*cond[: plan.num_draws].tolist(), *uncond[: plan.num_draws].tolist()}
    assert drawn - {-1} == set(range(plan.num_logit_rows))


def test_padding_a_prompt_does_not_run_the_head():
    plan = make_plan(num_tokens=77, num_seqs=1)
    assert not _C.is_recorded(plan)
    assert _C.bucket_for(plan) == {
        "num_tokens": 80, "num_seqs": 80, "num_logit_rows": 0, "num_draws": 0, "num_windows": 0,
    }  # fmt: skip


def test_compiled_kernel_is_launched_for_the_size_of_the_step():
    device = _C.Device("simulated")
    program, memory = _C.DeviceProgram(device.driver, _C.ThreadPool(1)), device.zeros([8], "int32")

    def fill(begin, value, count):
        pointer = (memory.address + 4 * begin).to_bytes(8, "little")
        arguments = [pointer, value.to_bytes(4, "little"), count.to_bytes(4, "little")]
        return (b"fill", "fill", (1, 1, 1), 32, 0, arguments)

    program.add_compiled([(device_backend.NO_COUNTS, [fill(0, 7, 5), fill(3, 9, 2)])], [memory])
    program.run()
    assert device.download(memory).numpy().tolist() == [7, 7, 7, 9, 9, 0, 0, 0]
    other = _C.DeviceProgram(device.driver, _C.ThreadPool(1))
    other.add_compiled([({**device_backend.NO_COUNTS, "num_tokens": 3}, [fill(0, 1, 8)])], [memory])
    with pytest.raises(InternalError, match="no kernel was compiled for a step of 0 rows"):
        other.run()


def test_op_in_triton_is_compiled_for_every_size_of_a_step(monkeypatch):
    backend, asked = open_backend("simulated", 1), []

    def device_launches(op, fields, counts, capability, workspace):
        asked.append(counts)
        arguments = (workspace(4 * counts["num_tokens"]).to_bytes(8, "little"), bytes(4), bytes(4))
        kernel = SimpleNamespace(cubin=b"fill", name="fill", shared_bytes=0)
        return [SimpleNamespace(kernel=kernel, grid=(1, 1, 1), num_threads=32, arguments=arguments)]

    monkeypatch.setitem(sys.modules, "simplear_engine.triton_aot", SimpleNamespace(device_launches=device_launches))
    plan, program = make_plan(), backend.new_program()
    backend.step_plan(plan)
    backend.add(program, "gumbel_noise", {"noise": backend.zeros([1, 7], "float32")}, impl="triton")
    assert asked == _C.all_buckets(plan)[::-1]
    assert len(backend._workspaces) == 1


# ---------------------------------------------------------------- the device itself


def test_tensor_comes_back_from_the_device_as_it_went():
    device = _C.Device("simulated")
    array = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
    tensor = device.upload(_C.Tensor.from_numpy(array))
    assert tensor.device == "simulated:0" and tensor.shape == (3, 7)
    np.testing.assert_array_equal(device.download(tensor).numpy(), array)
    with pytest.raises(InvalidRequestError, match="on simulated:0: NumPy sees memory of the host only"):
        tensor.numpy()


def test_op_refuses_a_tensor_of_another_device():
    device = _C.Device("simulated")
    program = _C.DeviceProgram(device.driver, _C.ThreadPool(1))
    fields = {
        "seed": device.zeros([1], "uint64"), "position": _C.Tensor.zeros([1], "int32"),
        "noise": device.zeros([1, 7], "float32"), "num_rows": 1, "num_codes": 7,
    }  # fmt: skip
    with pytest.raises(InvalidRequestError, match=r"position: expected a tensor on simulated:0, got one on cpu"):
        program.add("gumbel_noise", _C.chosen_isa(), fields)


def test_host_that_touches_device_memory_is_stopped():
    script = """
        import ctypes
        from simplear_engine import _C
        tensor = _C.Device("simulated").zeros([8], "float32")
        ctypes.string_at(tensor.address, 4)
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True)
    assert process.returncode == -11
