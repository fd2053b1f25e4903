"""Speculation changes how many steps an image takes, and nothing else (contract C3)."""

import threading

import numpy as np
import pytest

from simplear_engine import Engine
from simplear_engine.config import ModelConfig
from simplear_engine.errors import InvalidRequestError, UnsupportedError
from simplear_engine.weights import weight_specs

CONFIG = ModelConfig(
    hidden_size=48, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, rope_theta=1e4,
    rms_norm_eps=1e-6, vocab_size=84, tie_word_embeddings=False, max_position_embeddings=400, visual_offset=64,
)  # fmt: skip
WINDOWS = [1, 2, 3, 5, 8, 16, 32, 64]


def make_engine(dtype="float32", **options):
    # Few codes and small weights: neighbouring draws often agree, so that drafts are right as well as wrong.
    rng = np.random.default_rng(0)
    weights = {
        name: (np.ones(spec.shape) if "norm" in name else rng.standard_normal(spec.shape) * 0.15).astype(np.float32)
        for name, spec in weight_specs(CONFIG).items()
    }
    return Engine.from_weights(CONFIG, weights, dtype=dtype, threads=2, **options)


def draw(engine, seed=0, side=8, window=None, **options):
    speculation = {"speculation": "jacobi", "draft_window": window} if window else {"speculation": None}
    options = {"guidance_scale": 2.0, "temperature": 0.3, **speculation, **options}
    negative = None if options["guidance_scale"] == 1 else [2] * 18
    return engine.generate_from_ids(
        [1 + seed % 50] * 20, negative, height=side * 16, width=(side + 1) * 16, seed=seed, **options
    )[0]


def assert_same(image, plain):
    np.testing.assert_array_equal(image.tokens, plain.tokens)
    np.testing.assert_array_equal(image.log_probs, plain.log_probs)
    assert image.accepted_lens.sum() == image.tokens.size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize(
    "options", [{}, {"guidance_scale": 1}, {"temperature": 0}, {"top_k": 5}, {"top_p": 0.7, "temperature": 1.0}]
)
def test_image_is_the_plain_one_for_every_window(dtype, options):
    with make_engine(dtype) as engine:
        for seed in range(3):
            plain = draw(engine, seed, **options)
            for window in WINDOWS:
                assert_same(draw(engine, seed, window=window, **options), plain)


@pytest.mark.parametrize("source", ["context", "left", "above", "marginal", "previous"])
def test_image_is_the_plain_one_for_every_source_of_drafts(source):
    with make_engine() as engine:
        plain = [draw(engine, seed) for seed in range(3)]
        # The second round finds what the first one learnt.
        for _ in range(2):
            for seed in range(3):
                assert_same(draw(engine, seed, window=8, draft_source=source), plain[seed])
                assert_same(draw(engine, seed, draft_source=source, speculation="auto"), plain[seed])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_image_is_the_plain_one_when_the_engine_chooses_windows(dtype):
    with make_engine(dtype, max_pairs=4) as engine:
        plain = draw(engine, 5)
        for _ in range(4):
            assert_same(draw(engine, 5, speculation="auto"), plain)
        together = engine.generate_from_ids(
            [6] * 20, [2] * 18, height=128, width=144, seed=3, num_images=5, guidance_scale=2.0, temperature=0.3,
            speculation="auto",
        )  # fmt: skip
        assert_same(together[2], plain)


def test_drafts_learnt_from_earlier_images_save_steps():
    with make_engine() as engine:
        first = draw(engine, 1, window=16)
        again = draw(engine, 1, window=16)
    assert_same(again, first)
    assert again.num_steps < 0.6 * first.num_steps


def test_learnt_drafts_outlive_the_engine(tmp_path):
    from simplear_engine import draft_file

    path = tmp_path / "drafts.safetensors"
    with make_engine() as engine:
        first = draw(engine, 1, window=16)
        assert engine.save_drafts(path) > 0
    with make_engine() as engine:
        engine._core.insert_draft_entries(draft_file.read_drafts(path, CONFIG.num_codes))
        again = draw(engine, 1, window=16)
    assert_same(again, first)
    assert again.num_steps < 0.6 * first.num_steps


def test_drafts_are_learnt_for_a_folder_only_and_others_refused_before_anything_is_drawn(monkeypatch, tmp_path):
    from simplear_train import learn_drafts

    monkeypatch.setattr("sys.argv", ["learn_drafts", "--model", "default"])
    monkeypatch.setattr(learn_drafts, "captions", None)
    with pytest.raises(SystemExit, match="^InvalidRequestError: --model: expected the folder of a checkpoint"):
        learn_drafts.main()
    monkeypatch.setattr("sys.argv", ["learn_drafts", "--model", str(tmp_path), "--prompts", str(tmp_path / "none.txt")])
    with pytest.raises(SystemExit, match="^InvalidRequestError: .*none.txt: expected a file of prompts: No such file"):
        learn_drafts.main()


def test_draft_file_of_another_vocabulary_is_refused(tmp_path):
    from simplear_engine import draft_file
    from simplear_engine.errors import CheckpointError

    path = tmp_path / "drafts.safetensors"
    draft_file.write_drafts(path, np.array([[77, 78], [3, 19], [1, 1], [1, 1]], np.int32))
    assert draft_file.read_drafts(path, 20).shape == (4, 2)
    with pytest.raises(CheckpointError, match="expected codes below 19, found 19"):
        draft_file.read_drafts(path, 19)


def test_code_that_a_draft_file_cannot_hold_is_refused(tmp_path):
    from simplear_engine import draft_file

    path = tmp_path / "drafts.safetensors"
    with pytest.raises(InvalidRequestError, match="drafts.safetensors: expected codes up to 65535, got 65536"):
        draft_file.write_drafts(path, np.array([[77], [65536], [1], [1]], np.int32))
    assert not path.exists()


def test_drafts_are_counted_by_their_place_in_the_window():
    with make_engine() as engine:
        image = draw(engine, 2, window=5)
        stats = engine.stats()
    verified, kept = image.draft_counts
    assert len(verified) == 4 and (np.diff(verified) <= 0).all() and (np.diff(kept) <= 0).all()
    assert kept.sum() == image.tokens.size - len(image.accepted_lens)
    np.testing.assert_array_equal(stats["num_drafts_verified"], verified)
    np.testing.assert_array_equal(stats["num_drafts_kept"], kept)


def test_window_saves_steps():
    with make_engine() as engine:
        plain, windowed = draw(engine), draw(engine, window=16)
    assert plain.num_steps == plain.tokens.size
    assert windowed.num_steps < 0.7 * plain.num_steps
    assert windowed.num_steps == len(windowed.accepted_lens)


def test_windows_prompts_and_cancellations_mix_in_one_step():
    class Enough(Exception):
        pass

    def stop(done, total):
        if done > 20:
            raise Enough

    windows = [1, 3, 64, 8, 2, 16]
    with make_engine(max_pairs=4, prefill_chunk=37) as engine:
        plain = [draw(engine, seed, side=6 + seed) for seed in range(len(windows))]
        images = {}

        def work(seed):
            images[seed] = draw(engine, seed, side=6 + seed, window=windows[seed])

        def cancelled():
            with pytest.raises(Enough):
                draw(engine, 99, side=15, window=32, on_progress=stop)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(len(windows))]
        threads += [threading.Thread(target=cancelled) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = engine.stats()
    for seed, expected in enumerate(plain):
        assert_same(images[seed], expected)
    assert stats["num_free_blocks"] == stats["num_blocks"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"speculation": "magic"}, "speculation: expected one of None, 'auto', 'jacobi', .*'neighbours', got 'magic'"),
        ({"draft_window": 4}, "draft_window: expected None where speculation is None"),
        ({"draft_source": "left"}, "draft_source: expected None where speculation is None, got 'left'"),
        ({"speculation": "jacobi", "draft_window": 65}, "draft_window: expected an integer in 1..64, got 65"),
        (
            {"draft_source": "magic"},
            "draft_source: expected one of context, left, above, marginal, previous, got 'magic'",
        ),
        ({"speculation": "jacobi", "draft_window": 0}, "draft_window: expected an integer in 1..64, got 0"),
    ],
)
def test_impossible_speculation_is_refused(options, message):
    with make_engine() as engine, pytest.raises(InvalidRequestError, match=message):
        draw(engine, **options)


def test_inexact_pictures_say_so(tmp_path):
    from PIL import Image

    options = {"seed": 3, "num_images": 6, "draft_window": 16}
    with Engine.from_pretrained("default", max_pairs=1) as engine:
        exact = engine.generate("a red apple", speculation="jacobi", draft_source="left", **options)
        near, again = (engine.generate("a red apple", speculation="neighbours", **options) for _ in range(2))
    assert all(image.inexact is None for image in exact) and all(image.inexact == "neighbours" for image in near)
    # Alone, and with guesses of the picture's own, the same seed still draws the same.
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(near, again, strict=True))
    assert all(np.isfinite(image.log_probs).all() for image in exact)
    assert sum(np.isnan(image.log_probs).any() for image in near) > 3
    for image, inexact in ((exact[0], False), (near[0], True)):
        image.save(tmp_path / "picture.png")
        with Image.open(tmp_path / "picture.png") as png:
            assert ("Speculation: neighbours (inexact)" in png.text["parameters"]) == inexact
            assert ('"inexact": "neighbours"' in png.text["simplear"]) == inexact


@pytest.mark.parametrize("rule", ["ratio", "simplear"])
def test_rules_of_probability_draw_other_pictures_in_fewer_steps(rule):
    options = {"seed": 3, "num_images": 12}
    with Engine.from_pretrained("default", max_pairs=4) as engine:
        plain = engine.generate("a red apple", speculation=None, **options)
        images, again = (engine.generate("a red apple", speculation=rule, draft_window=16, **options) for _ in range(2))
    assert all(image.inexact == rule for image in images)
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(images, again, strict=True))
    assert any(not np.array_equal(a.tokens, b.tokens) for a, b in zip(images, plain, strict=True))
    assert sum(image.num_steps for image in images) < 0.6 * sum(image.num_steps for image in plain)
    kept = sum(image.draft_counts[1].sum() for image in images)
    assert 0 < kept < sum(image.draft_counts[0].sum() for image in images)


def test_inexact_speculation_needs_to_know_what_codes_stand_for():
    with make_engine() as engine, pytest.raises(UnsupportedError, match="neighbours.*image tokenizer"):
        draw(engine, speculation="neighbours")
