"""What only a GPU can show; skipped where there is none. `make gpu` runs it.

Every kernel on every case against its reference, whole images against the CPU's, the same image however the steps are
batched, launched or delayed.
"""

import threading

import numpy as np
import pytest

from simplear_engine import Engine, _C, device_backend
from simplear_engine.config import ModelConfig
from simplear_engine.kernels import float8
from simplear_engine.kernels.op import all_ops
from simplear_engine.testing.device_trial import DeviceTrial, cases_of
from simplear_engine.weights import weight_specs

pytestmark = pytest.mark.skipif(not _C.cuda_devices()[0], reason=f"no GPU: {_C.cuda_devices()[1]}")

CONFIG = ModelConfig(
    hidden_size=448, intermediate_size=640, num_layers=3, num_heads=7, num_kv_heads=1, head_dim=64, rope_theta=1e6,
    rms_norm_eps=1e-6, vocab_size=4096 + 160, tie_word_embeddings=True, max_position_embeddings=1200, visual_offset=160,
)  # fmt: skip
NEGATIVE = [4, 5] * 10
OPS = all_ops()
KERNELS = [name for name, impls in _C.cuda_op_impls().items() if "cuda" in impls]


# ---------------------------------------------------------------- ops


def cases():
    for name in KERNELS:
        for case in cases_of(OPS[name].test_cases):
            yield pytest.param(name, case, id=f"{name}-{case.id}")


@pytest.fixture(scope="module")
def backend():
    from simplear_engine.engine_options import open_backend

    return open_backend("cuda", threads=None)


@pytest.mark.parametrize("name, case", list(cases()))
def test_kernel_matches_reference(name, case, backend):
    trial = DeviceTrial(OPS[name], "cuda", case, backend)
    trial.run()
    trial.check()


# ---------------------------------------------------------------- whole images


def random_weights(seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: (np.ones(spec.shape) if "norm" in name else rng.standard_normal(spec.shape) * 0.05).astype(np.float32)
        for name, spec in weight_specs(CONFIG).items()
    }


def make_engine(device="cuda", weights=None, **options):
    return Engine.from_weights(
        CONFIG, weights or random_weights(), **{"device": device, "dtype": "bfloat16", **options}
    )


def draw(engine, seed=7, prompt_length=30, side=16, **options):
    options = {"height": side * 16, "width": side * 16, "guidance_scale": 2.5, **options}
    negative = None if options["guidance_scale"] == 1 else NEGATIVE
    return engine.generate_from_ids([1 + seed % 3, 2] * prompt_length, negative, seed=seed, **options)[0]


def assert_same(image, other):
    np.testing.assert_array_equal(image.tokens, other.tokens)
    np.testing.assert_array_equal(image.log_probs, other.log_probs)


def crowd(engine, count=9):
    images = [None] * count

    def ask(i):
        images[i] = draw(engine, seed=i, prompt_length=5 + 20 * i, side=6 + i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return images


@pytest.mark.parametrize(
    "dtype, kv_dtype",
    [
        ("bfloat16", "auto"),
        ("float32", "auto"),
        (float8.NAME, "auto"),
        ("bfloat16", "int8"),
        (float8.NAME, float8.NAME),
    ],
)
def test_image_is_the_same_alone_in_a_crowd_and_speculated(dtype, kv_dtype):
    with make_engine(dtype=dtype, kv_dtype=kv_dtype) as engine:
        alone = [draw(engine, seed=i, prompt_length=5 + 20 * i, side=6 + i) for i in range(9)]
        for image, expected in zip(crowd(engine), alone, strict=True):
            assert_same(image, expected)
        for window in (2, 8, 64):
            image = draw(engine, seed=4, prompt_length=85, side=10, speculation="jacobi", draft_window=window)
            assert_same(image, alone[4])
        for _ in range(3):
            assert_same(draw(engine, seed=4, prompt_length=85, side=10, speculation="auto"), alone[4])


def test_scores_are_those_of_the_cpu():
    tokens = np.random.default_rng(0).integers(0, CONFIG.num_codes, 500)
    with make_engine(dtype="float32") as gpu, make_engine("cpu", dtype="float32") as cpu:
        got, want = (engine.score_from_ids([1, 2, 3], tokens) for engine in (gpu, cpu))
    np.testing.assert_allclose(got, want, atol=2e-3)


def test_images_are_those_of_the_cpu_as_far_as_rounding_allows():
    """In float32 the first code that differs comes late, if at all; its probability was nearly that of the other."""
    with make_engine(dtype="float32") as gpu, make_engine("cpu", dtype="float32") as cpu:
        image, expected = draw(gpu), draw(cpu)
    same = (image.tokens == expected.tokens).reshape(-1)
    until = len(same) if same.all() else int(np.argmin(same))
    assert until >= 32
    np.testing.assert_allclose(image.log_probs.reshape(-1)[:until], expected.log_probs.reshape(-1)[:until], atol=5e-3)


def test_pixels_are_those_of_the_cpu_but_for_rounding():
    pytest.importorskip("triton")
    with (
        Engine.from_pretrained("default", device="cuda") as gpu,
        Engine.from_pretrained("default", device="cpu") as cpu,
    ):
        codes = cpu.generate("a red apple", seed=3)[0].tokens
        decoded = [engine._pixels.start(codes, {}).result() for engine in (gpu, cpu, gpu)]
    np.testing.assert_array_equal(decoded[0], decoded[2])
    assert np.abs(decoded[0] - decoded[1]).mean() < 0.01


# ---------------------------------------------------------------- overlapping kernels


@pytest.mark.parametrize("overlap", [(False, 0), (True, 20_000), (False, 5_000)])
def test_image_does_not_depend_on_when_kernels_begin(monkeypatch, overlap):
    """A kernel that reads before it has waited for the one before it draws something else behind a delay."""
    with make_engine() as engine:
        expected = draw(engine, side=8)
    monkeypatch.setattr(device_backend, "OVERLAP", overlap)
    with make_engine() as engine:
        assert_same(draw(engine, side=8), expected)


# ---------------------------------------------------------------- living beside torch


def test_weights_of_torch_are_borrowed_and_their_changes_seen():
    torch = pytest.importorskip("torch")
    weights = {name: torch.from_numpy(array).cuda() for name, array in random_weights().items()}
    with make_engine(weights=weights) as engine, make_engine() as reference:
        assert_same(draw(engine, side=8), draw(reference, side=8))
        stream = torch.cuda.Stream()
        engine.release_to_stream(stream)
        with torch.cuda.stream(stream):
            for name, array in random_weights(1).items():
                weights[name].copy_(torch.from_numpy(array).cuda())
        engine.wait_stream(stream)
        engine.weights_changed()
        changed = draw(engine, side=8)
    with make_engine(weights=random_weights(1)) as reference:
        assert_same(changed, draw(reference, side=8))
