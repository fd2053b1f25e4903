"""What a caller of Engine may rely on: checked arguments, seeds, progress, cancelling, limits, closing."""

import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from simplear_engine import (
    CancelledError,
    CapacityError,
    Engine,
    InvalidRequestError,
    QueueFullError,
    SimplearError,
    _C,
)
from simplear_engine.checkpoint import load_checkpoint
from simplear_engine.config import GenerationDefaults
from simplear_engine.kernels.packed_weight import pack
from simplear_engine.png import metadata_for

NAN, INFINITY, HUGE = float("nan"), float("inf"), 10**400
NO_INTEGERS = [True, 1.0, "16", [16], NAN, np.array([16]), object()]
NO_NUMBERS = [True, "1", [1.0], NAN, INFINITY, HUGE, np.array([1.0, 1.0]), 1j, object()]

BAD_ARGUMENTS = {
    "height": [*NO_INTEGERS, 0, -16, 17, 1 << 20, HUGE],
    "width": [*NO_INTEGERS, 0, -16, 72, 1 << 20, HUGE],
    "num_images": [*NO_INTEGERS, 0, -1, 1 << 20, HUGE, None],
    "guidance_scale": [*NO_NUMBERS, -0.5, 1e9],
    "temperature": [*NO_NUMBERS, -0.5, 1e9, 1e-38, 1e-46, None],
    "top_k": [*NO_INTEGERS, 0, -1, 513, HUGE],
    "top_p": [*NO_NUMBERS, 0, 1e-50, -0.5, 1.0001, None],
    "seed": [*NO_INTEGERS, -1, 1 << 64, HUGE],
    "prompt": [None, 5, b"apple", [], {}, {"apple"}, ["apple", 5], ["apple", None], [["apple"]], "\ud800", ["a", "\udfff"]],
    "negative_prompt": [5, b"apple", ["apple"], np.array(["a", "b"]), "\ud800"],
    "speculation": [True, 5, ["auto"], np.array(["auto", "jacobi"])],
    "draft_source": [True, 5, ["left"], np.array(["left", "above"])],
}  # fmt: skip
SMALL = {"prompt": "apple", "height": 32, "width": 32, "seed": 7}


def drawn(images) -> list[list[int]]:
    return [image.tokens.reshape(-1).tolist() for image in images]


def assert_nothing_is_left(engine):
    stats = engine.stats()
    assert (stats["num_running"], stats["num_waiting"]) == (0, 0)
    assert stats["num_free_blocks"] == stats["num_blocks"]


def wait_until(condition):
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("waited 30 s in vain")


@pytest.mark.parametrize(
    "name, value",
    [
        pytest.param(name, value, id=f"{name}={value!r:.24}".split(" object at")[0])
        for name, values in BAD_ARGUMENTS.items()
        for value in values
    ],
)
def test_bad_argument_is_named(tiny_engine, name, value):
    with pytest.raises(InvalidRequestError, match=rf"^{name}: "):
        tiny_engine.generate(**{**SMALL, name: value})
    assert_nothing_is_left(tiny_engine)


@pytest.mark.parametrize("name", ["prompt_ids", "negative_ids"])
@pytest.mark.parametrize("value", ["abc", b"abc", 5, [1.5], ["1"], [True], [-1], [776], [1 << 70], [[1, 2]], [None],
                                   [], {2, 1}, {2: 1}, np.array([[1, 2], [3, 4]]), np.array([1.5])], ids=repr)  # fmt: skip
def test_bad_ids_are_named(tiny_engine, name, value):
    ids = {"prompt_ids": [1, 2], "negative_ids": [3], name: value}
    with pytest.raises(InvalidRequestError, match=rf"^{name}: "):
        tiny_engine.generate_from_ids(**ids, height=32, width=32)
    assert_nothing_is_left(tiny_engine)


@pytest.mark.parametrize("value", [[], [1.5], ["1"], [True], [-1], [512], [1 << 40], [1 << 70], 5.0, None], ids=repr)
def test_bad_codes_to_score_are_named(tiny_engine, value):
    with pytest.raises(InvalidRequestError, match="^tokens: "):
        tiny_engine.score_from_ids([1, 2], value)
    assert_nothing_is_left(tiny_engine)


def test_value_that_nobody_can_print_is_named_by_its_type(tiny_engine):
    for name in ("seed", "top_k", "height"):
        with pytest.raises(InvalidRequestError, match=f"^{name}: .*a value of type int that cannot be shown"):
            tiny_engine.generate(**{**SMALL, name: 10**5000})
    with pytest.raises(InvalidRequestError, match=r"^on_progress: expected a function of \(done, total\), got 5"):
        tiny_engine.generate(**SMALL, on_progress=5)
    with pytest.raises(InvalidRequestError, match="^prompt_ids: expected a sequence"):
        tiny_engine.generate_from_ids(np.array(5), [1])
    with pytest.raises(InvalidRequestError, match="^tokens: expected at most"):
        tiny_engine.score_from_ids([1, 2], np.zeros(10**8, np.int8))
    with pytest.raises(InvalidRequestError, match="^tokens: expected integer codes"):
        tiny_engine.score_from_ids([1, 2], [[1, 2], [3]])
    assert_nothing_is_left(tiny_engine)


def test_negative_ids_are_for_guidance_and_nothing_else(tiny_engine):
    with pytest.raises(InvalidRequestError, match="^negative_ids: .*guidance_scale is 3"):
        tiny_engine.generate_from_ids([1, 2], None, height=32, width=32, guidance_scale=3)
    with pytest.raises(InvalidRequestError, match="^negative_ids: has no effect .* got 1$"):
        tiny_engine.generate_from_ids([1, 2], [3], height=32, width=32, guidance_scale=1)
    assert len(tiny_engine.generate_from_ids([1, 2], None, height=32, width=32, guidance_scale=1)) == 1


def test_last_seed_leaves_room_for_all_images(tiny_engine):
    last = 2**64 - 1
    assert tiny_engine.generate(**{**SMALL, "seed": last})[0].seed == last
    with pytest.raises(InvalidRequestError, match="^seed: "):
        tiny_engine.generate(**{**SMALL, "seed": last}, num_images=2)


def test_numpy_numbers_are_numbers(tiny_engine):
    exact = tiny_engine.generate(**SMALL, guidance_scale=2.0, top_k=5)
    same = tiny_engine.generate(
        "apple",
        height=np.int64(32),
        width=np.uint8(32),
        seed=np.uint64(7),
        guidance_scale=np.float32(2),
        top_k=np.int8(5),
    )
    assert drawn(same) == drawn(exact)
    assert type(same[0].seed) is int


def test_images_of_one_prompt_have_consecutive_seeds(tiny_engine):
    together = tiny_engine.generate(**SMALL, num_images=3)
    assert [image.seed for image in together] == [7, 8, 9]
    apart = [tiny_engine.generate(**{**SMALL, "seed": seed})[0] for seed in (7, 8, 9)]
    assert drawn(together) == drawn(apart)
    assert len({tuple(tokens) for tokens in drawn(together)}) == 3


def test_every_prompt_of_a_list_starts_at_the_seed(tiny_engine):
    together = tiny_engine.generate(**{**SMALL, "prompt": ["apple", "pear", "apple"]}, num_images=2)
    assert [(image.prompt, image.seed) for image in together] == [
        ("apple", 7), ("apple", 8), ("pear", 7), ("pear", 8), ("apple", 7), ("apple", 8),
    ]  # fmt: skip
    apple = drawn(tiny_engine.generate(**SMALL, num_images=2))
    pear = drawn(tiny_engine.generate(**{**SMALL, "prompt": "pear"}, num_images=2))
    assert drawn(together) == [*apple, *pear, *apple]
    assert apple != pear


def test_images_introduce_themselves_in_a_line(tiny_engine):
    (image,) = tiny_engine.generate("a red apple", seed=7)
    text = repr(image)
    assert "'a red apple'" in text and "seed 7" in text and f"{image.width} x {image.height} pixels" in text
    assert len(text.splitlines()) == 1 and len(text) < 120


def test_images_report_what_they_were_drawn_with(tiny_engine):
    image = tiny_engine.generate("apple", negative_prompt="pear", height=48, width=32, seed=3, top_k=9, top_p=0.5)[0]
    assert (image.prompt, image.negative_prompt, image.height, image.width) == ("apple", "pear", 48, 32)
    assert (image.guidance_scale, image.temperature, image.top_k, image.top_p, image.seed) == (3.0, 1.0, 9, 0.5, 3)
    assert image.tokens.shape == image.log_probs.shape == (3, 2)
    assert image.tokens.dtype == np.int32 and image.log_probs.dtype == np.float32
    assert 0 <= image.tokens.min() and image.tokens.max() < 512
    assert np.all(image.log_probs <= 0) and np.all(image.log_probs > -np.log(9) - 10)
    assert image.pil.size == (32, 48)
    assert {"queue", "prefill", "decode", "pixels"} <= image.timings.keys()


@pytest.mark.parametrize("spelled", ["{}", "./{}", "~/{}", "../{parent}/{}", "{}/vq/.."])
def test_picture_tells_the_name_of_its_models_folder_and_not_the_place(tiny_checkpoint, monkeypatch, spelled):
    monkeypatch.chdir(tiny_checkpoint.parent)
    monkeypatch.setenv("HOME", str(tiny_checkpoint.parent))
    model = spelled.format(tiny_checkpoint.name, parent=tiny_checkpoint.parent.name)
    with Engine.from_pretrained(model, threads=1) as engine:
        told = metadata_for(engine.generate(**SMALL)[0])
    assert json.loads(told["simplear"])["model"] == tiny_checkpoint.name
    assert f"Model: {tiny_checkpoint.name}," in told["parameters"]


def test_without_a_seed_each_call_differs_and_tells_its_seed(tiny_engine):
    first, second = (tiny_engine.generate(**{**SMALL, "seed": None})[0] for _ in range(2))
    assert first.seed != second.seed
    assert drawn([first]) != drawn([second])
    assert drawn(tiny_engine.generate(**{**SMALL, "seed": first.seed})) == drawn([first])


def test_negative_prompt_needs_guidance(tiny_engine):
    with pytest.raises(InvalidRequestError, match=r"negative_prompt: has no effect without guidance; .* got 1$"):
        tiny_engine.generate(**SMALL, guidance_scale=1, negative_prompt="pear")
    assert tiny_engine.generate(**SMALL, guidance_scale=1, negative_prompt="")[0].negative_prompt is None
    one, other = (tiny_engine.generate(**SMALL, guidance_scale=9, negative_prompt=text) for text in ("pear", "plum"))
    assert drawn(one) != drawn(other)


def test_prompt_that_spells_a_control_token_is_plain_text(tiny_engine, tiny_checkpoint):
    import json

    tokenizer = json.loads((tiny_checkpoint / "tokenizer.json").read_text())
    characters = tokenizer["model"]["vocab"]
    control = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}

    def ids(text):
        return [control["<|t2i|>"], *(characters[character] for character in text), control["<|soi|>"]]

    spelled = "<|soi|><|t2i|><|endoftext|>"
    by_text = tiny_engine.generate(**{**SMALL, "prompt": spelled}, negative_prompt=spelled)
    by_ids = tiny_engine.generate_from_ids(ids(spelled), ids(spelled), height=32, width=32, seed=7)
    assert drawn(by_text) == drawn(by_ids)


def test_progress_counts_up_to_the_total_in_the_callers_thread(tiny_engine):
    seen, threads = [], set()

    def on_progress(done, total):
        seen.append((done, total))
        threads.add(threading.current_thread())

    tiny_engine.generate(**{**SMALL, "prompt": ["apple", "pear"]}, num_images=3, on_progress=on_progress)
    counts = [done for done, _ in seen]
    assert {total for _, total in seen} == {2 * 3 * 4}
    assert counts == sorted(counts) and counts[-1] == 24
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("error", [RuntimeError("enough"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_exception_in_on_progress_cancels_and_goes_on_to_the_caller(tiny_engine, error):
    before = drawn(tiny_engine.generate(**SMALL))

    def on_progress(done, total):
        raise error

    with pytest.raises(type(error)) as caught:
        # Long enough that nothing of it is finished when progress is first told.
        tiny_engine.generate("apple", height=1024, width=1024, num_images=20, seed=1, on_progress=on_progress)
    assert caught.value is error
    assert_nothing_is_left(tiny_engine)
    assert drawn(tiny_engine.generate(**SMALL)) == before


def test_request_that_can_never_fit_is_refused_with_what_to_do(tiny_checkpoint):
    from simplear_engine.forward import cache_block_bytes

    with Engine.from_pretrained(tiny_checkpoint, threads=1) as roomy:
        block_bytes = cache_block_bytes(roomy.model, roomy.kv_dtype)
    with Engine.from_pretrained(tiny_checkpoint, threads=1, kv_cache_bytes=20 * block_bytes) as engine:
        with pytest.raises(CapacityError, match=r"needs 34 KV blocks, the cache has 20: .*kv_cache_bytes"):
            engine.generate("apple", height=256, width=256)
        with pytest.raises(InvalidRequestError, match="the model knows 32768 positions"):
            engine.generate("apple", height=4096, width=4096)
        assert len(engine.generate("apple", height=128, width=128, num_images=5)) == 5
        assert_nothing_is_left(engine)


def test_picture_whose_tokens_32_bits_cannot_count_is_refused(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    weights = {name: tensor.data.copy() for name, tensor in checkpoint.tensors.items()}
    defaults = GenerationDefaults(height=8, width=8, compression=1)
    with Engine.from_weights(checkpoint.model, weights, defaults=defaults, threads=1) as engine:
        with pytest.raises(InvalidRequestError, match="picture of 4294967296 tokens: the model knows 32768 positions"):
            engine.generate_from_ids([1], [1], height=1 << 16, width=1 << 16)


def test_prompt_longer_than_the_model_is_refused(tiny_engine):
    with pytest.raises(InvalidRequestError, match="the model knows 32768 positions; shorten the prompt"):
        tiny_engine.generate("apple " * 10_000, height=32, width=32)
    assert_nothing_is_left(tiny_engine)


def test_interrupt_between_a_submit_and_its_note_leaves_nothing_behind(tiny_checkpoint):
    class Interrupted:
        """The engine's core, with Ctrl-C on the return of the second submit."""

        def __init__(self, core):
            self.core, self.num_submits = core, 0

        def __getattr__(self, name):
            return getattr(self.core, name)

        def submit(self, request):
            self.core.submit(request)
            self.num_submits += 1
            if self.num_submits == 2:
                raise KeyboardInterrupt

    with Engine.from_pretrained(tiny_checkpoint, threads=1) as engine:
        engine._core = Interrupted(engine._core)
        made, make = [], engine._request
        engine._request = lambda *asked: made.append(make(*asked)) or made[-1]
        with pytest.raises(KeyboardInterrupt):
            engine.generate("apple", height=512, width=512, num_images=3)
        wait_until(lambda: engine.stats()["num_waiting"] + engine.stats()["num_running"] == 0)
        assert [request.status for request in made] == ["failed", "failed", "queued"]


def test_pause_that_an_interrupt_loses_ends(tiny_checkpoint):
    with Engine.from_pretrained(tiny_checkpoint, threads=1) as engine:
        engine._core.pause(weights_change=False)  # as where Ctrl-C comes before the result is taken
        assert len(engine.generate(**SMALL)) == 1


def test_kept_picture_does_not_keep_its_engine(tiny_checkpoint):
    with Engine.from_pretrained(tiny_checkpoint, threads=1) as engine:
        (image,) = engine.generate(**SMALL)
        pixels = image.pixels
        weights = weakref.ref(engine._weights)
    del engine
    gc.collect()
    assert weights() is None
    np.testing.assert_array_equal(image.pixels, pixels)


def test_full_queue_refuses_and_later_takes_again(tiny_checkpoint):
    with Engine.from_pretrained(tiny_checkpoint, threads=1, max_pairs=1, max_queue=1) as engine:
        expected = drawn(engine.generate(**SMALL))
        results = []
        with engine._core.pause(weights_change=False):  # what is submitted now stays in the queue
            client = threading.Thread(target=lambda: results.append(drawn(engine.generate(**SMALL))))
            client.start()
            wait_until(lambda: engine.stats()["num_waiting"] == 1)
            with pytest.raises(QueueFullError, match="queue is full"):
                engine.generate(**SMALL)
        client.join(30)
        assert results == [expected]
        assert drawn(engine.generate(**SMALL)) == expected


def test_call_larger_than_the_queue_feeds_it_as_room_comes(tiny_checkpoint):
    with Engine.from_pretrained(tiny_checkpoint, threads=1, max_pairs=2, max_queue=1) as engine:
        images = engine.generate(**SMALL, num_images=12)
        assert [image.seed for image in images] == list(range(7, 19))
        assert_nothing_is_left(engine)


def test_two_engines_in_one_process_do_not_touch_each_other(tiny_checkpoint, tiny_engine):
    expected = drawn(tiny_engine.generate(**SMALL, num_images=4))
    with Engine.from_pretrained(tiny_checkpoint, threads=1) as other:
        results = {}
        clients = [
            threading.Thread(target=lambda e=e, n=n: results.update({n: drawn(e.generate(**SMALL, num_images=4))}))
            for n, e in enumerate([tiny_engine, other])
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join(60)
        assert results == {0: expected, 1: expected}
    assert drawn(tiny_engine.generate(**SMALL, num_images=4)) == expected


def test_closing_ends_requests_in_flight_and_refuses_new_ones(tiny_checkpoint):
    engine = Engine.from_pretrained(tiny_checkpoint)
    picture = engine.generate(**SMALL)[0]
    errors = []

    def client():
        try:
            engine.generate("apple", height=1024, width=1024, num_images=20)
        except SimplearError as error:
            errors.append(error)

    thread = threading.Thread(target=client)
    thread.start()
    wait_until(lambda: engine.stats()["num_running"] > 0)
    engine.close()
    thread.join(30)
    assert [type(error) for error in errors] == [CancelledError]
    with pytest.raises(InvalidRequestError, match="closed"):
        engine.generate(**SMALL)
    with pytest.raises(InvalidRequestError, match="closed"):
        engine.score_from_ids([1], [2, 3])
    engine.close()
    assert picture.pil.size == (32, 32), "an image outlives its engine"


def test_a_call_that_is_half_submitted_when_the_engine_closes_is_cancelled(tiny_checkpoint):
    engine = Engine.from_pretrained(tiny_checkpoint)

    class ClosesAtTheThirdRequest:
        def __init__(self, core):
            self.core, self.num_submitted = core, 0

        def __getattr__(self, name):
            return getattr(self.core, name)

        def submit(self, request):
            self.num_submitted += 1
            if self.num_submitted == 3:
                engine.close()
            self.core.submit(request)

    engine._core = ClosesAtTheThirdRequest(engine._core)
    with pytest.raises(CancelledError, match="the engine was closed"):
        engine.generate(**SMALL, num_images=4)
    with pytest.raises(InvalidRequestError, match="closed"):
        engine.generate(**SMALL)


def test_engine_that_is_only_dropped_does_not_keep_the_process_alive(tiny_checkpoint):
    code = f"""
from simplear_engine import Engine
engine = Engine.from_pretrained({str(tiny_checkpoint)!r})
engine.generate("apple", height=32, width=32)
print("done")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_engine_in_a_forked_child_says_so_instead_of_hanging(tiny_checkpoint):
    code = f"""
import os
from simplear_engine import Engine, UnsupportedError
engine = Engine.from_pretrained({str(tiny_checkpoint)!r})
expected = engine.generate("apple", height=32, width=32, seed=1)[0].tokens
child = os.fork()
if child == 0:
    try:
        engine.generate("apple", height=32, width=32)
    except UnsupportedError as error:
        print(error, flush=True)
        engine.close()
        os._exit(5)
    os._exit(1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 5, status
assert (engine.generate("apple", height=32, width=32, seed=1)[0].tokens == expected).all()
"""
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "another process" in ended.stdout and "spawn" in ended.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.parametrize(
    "last_words", ["sys.exit(7)", "del engine, image; os._exit(7)", "image.pixels", "engine.stats()"]
)
def test_forked_child_neither_hangs_nor_takes_the_parents_engine_along(last_words):
    code = f"""
import os, sys
from simplear_engine import Engine, UnsupportedError
engine = Engine.from_pretrained("default", threads=2)
(image,) = engine.generate("a cat", seed=1)
child = os.fork()
if child == 0:
    try:
        {last_words}
    except UnsupportedError:
        sys.exit(7)
    sys.exit(7 if "image" in {last_words!r} else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
assert (engine.generate("a cat", seed=1)[0].tokens == image.tokens).all() and image.pixels.shape == (3, 128, 128)
"""
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_child_forked_while_pixels_are_handed_over_does_not_wait_for_them():
    code = """
import concurrent.futures, os, sys, time
from simplear_engine import Engine
hand_over = concurrent.futures.Future.set_result
concurrent.futures.Future.set_result = lambda self, result: (time.sleep(2), hand_over(self, result))
engine = Engine.from_pretrained("default", threads=2)
(image,) = engine.generate("a cat", seed=1)
while "pixels" not in image.timings:
    time.sleep(0.001)
time.sleep(0.1)
child = os.fork()
if child == 0:
    os._exit(7 if image.pixels.shape == (3, 128, 128) else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
"""
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


def test_process_ends_while_daemon_threads_draw(tiny_checkpoint):
    code = f"""
import threading, time
from simplear_engine import CancelledError, Engine
engine = Engine.from_pretrained({str(tiny_checkpoint)!r})
def draw():
    try:
        while True:
            engine.generate("apple", height=256, width=256)
    except CancelledError:
        pass
for _ in range(3):
    threading.Thread(target=draw, daemon=True).start()
time.sleep(0.3)
print("done")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr


def test_process_ends_while_daemon_threads_look_at_the_counters():
    code = """
import threading, time
from simplear_engine import Engine
engine = Engine.from_pretrained("default", threads=1)
def look():
    while True:
        engine.stats()
for _ in range(3):
    threading.Thread(target=look, daemon=True).start()
time.sleep(0.1)
print("done")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr


def test_several_threads_may_close_an_engine(tiny_checkpoint):
    engine = Engine.from_pretrained(tiny_checkpoint)
    worker = threading.Thread(
        target=lambda: pytest.raises(CancelledError, engine.generate, "apple", height=1024, width=1024, num_images=20)
    )
    worker.start()
    wait_until(lambda: engine.stats()["num_running"])
    closers = [threading.Thread(target=engine.close, daemon=True) for _ in range(4)]
    for thread in closers:
        thread.start()
    for thread in (*closers, worker):
        thread.join(20)
        assert not thread.is_alive()


def test_closing_behind_the_last_code_is_a_cancelled_request():
    with Engine.from_pretrained("default", threads=1) as engine:
        with pytest.raises(CancelledError, match="closed"):
            engine.generate("a cat", seed=1, on_progress=lambda done, total: engine.close() if done == total else None)


def test_closed_and_dropped_engine_leaves_nothing_to_the_garbage_collector(tiny_checkpoint):
    gc.collect()
    gc.disable()
    try:
        engine = Engine.from_pretrained(tiny_checkpoint)
        weights = weakref.ref(engine._weights)
        engine.close()
        del engine
        assert weights() is None
    finally:
        gc.enable()


def test_long_negative_prompt_is_refused_and_nobody_else_notices():
    with Engine.from_pretrained("default", threads=1) as engine:
        expected = [engine.generate("a red apple", seed=seed, guidance_scale=2)[0].tokens for seed in range(4)]
        with ThreadPoolExecutor(5) as pool:
            drawn = [pool.submit(engine.generate, "a red apple", seed=seed, guidance_scale=2) for seed in range(4)]
            with pytest.raises(
                InvalidRequestError, match="negative prompt and picture of .* shorten the negative prompt"
            ):
                engine.generate("a cat", negative_prompt="cat dog apple red " * 254, guidance_scale=2)
            assert all((image.result()[0].tokens == tokens).all() for image, tokens in zip(drawn, expected))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_fault_in_a_thread_of_the_pool_is_an_error_and_not_the_end(threads):
    pool = _C.ThreadPool(threads)
    for _ in range(3):
        with pytest.raises(SimplearError, match="expected a float type, got int64"):
            pack([_C.Tensor.from_numpy(np.ones((256, 64), np.int64))], "float32", pool)
    assert pack([_C.Tensor.from_numpy(np.ones((256, 64), np.float32))], "float32", pool) is not None


def test_weights_that_are_no_floats_are_named(tiny_checkpoint):
    weights = {name: t.data for name, t in load_checkpoint(tiny_checkpoint).tensors.items()}
    weights["model.layers.0.mlp.down_proj.weight"] = weights["model.layers.0.mlp.down_proj.weight"].astype(np.int64)
    with pytest.raises(InvalidRequestError, match="down_proj.weight: expected one of .*, found int64"):
        Engine.from_weights(load_checkpoint(tiny_checkpoint).model, weights)


class Unlendable:
    """As a tensor of torch on its "meta" device."""

    def __dlpack__(self, **options):
        raise ValueError("unknown device type meta")

    def __dlpack_device__(self):
        raise ValueError("unknown device type meta")


LENDERS = {
    "list": lambda array: array.tolist(),
    "nothing": lambda array: None,
    "float64": lambda array: array.astype(np.float64),
    "transposed": lambda array: array.T,
    "read_only": lambda array: np.broadcast_to(array, array.shape),
    "nowhere": lambda array: Unlendable(),
}


@pytest.mark.parametrize("lender", LENDERS)
def test_weight_that_cannot_be_borrowed_is_named(tiny_checkpoint, lender):
    name = "model.layers.0.mlp.down_proj.weight"
    weights = {name: t.data.copy() for name, t in load_checkpoint(tiny_checkpoint).tensors.items()}
    weights[name] = LENDERS[lender](weights[name])
    with pytest.raises(InvalidRequestError, match=f"do not fit the configuration:\n  {name}: .*[a-z]"):
        Engine.from_weights(load_checkpoint(tiny_checkpoint).model, weights)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"num_kv_heads": 3}, "config: num_kv_heads: expected a divisor of num_heads = 4, found 3"),
        ({"num_kv_heads": 0}, "config: num_kv_heads: expected an integer from 1"),
        ({"num_layers": 0}, "config: num_layers: "),
        ({"head_dim": 15}, "config: head_dim: expected an even number"),
        ({"visual_offset": -1}, "config: visual_offset: "),
        ({"visual_offset": 776}, "config: vocab_size: expected more than the tokenizer's 776"),
        ({"rms_norm_eps": float("nan")}, "config: rms_norm_eps: "),
        ({"rope_theta": 0.0}, "config: rope_theta: "),
    ],
    ids=str,
)
def test_impossible_configuration_of_given_weights_is_named(tiny_checkpoint, change, text):
    with pytest.raises(InvalidRequestError, match=text):
        Engine.from_weights(replace(load_checkpoint(tiny_checkpoint).model, **change), {})


@pytest.mark.parametrize(
    "options, text",
    [
        ({"defaults": GenerationDefaults(height=100)}, "defaults: height: expected a multiple of compression = 16"),
        ({"defaults": GenerationDefaults(top_k=513)}, "defaults: top_k: expected at most 512, .* found 513"),
        ({"defaults": GenerationDefaults(compression=0)}, "defaults: compression: "),
        ({"defaults": {"height": 64}}, "defaults: expected GenerationDefaults, got {'height': 64}"),
        ({"weights": None}, "weights: expected tensors by name, got None"),
    ],
    ids=["height", "top_k", "compression", "dict", "weights"],
)
def test_impossible_company_of_given_weights_is_named(tiny_checkpoint, options, text):
    with pytest.raises(InvalidRequestError, match=text):
        Engine.from_weights(load_checkpoint(tiny_checkpoint).model, **{"weights": {}, **options})


def test_timings_do_not_change_under_their_reader():
    with Engine.from_pretrained("default", threads=1) as engine:
        (image,) = engine.generate("a cat", seed=1)
        before = image.timings
        names = set(before)
        assert image.pixels is not None and set(before) == names and "pixels" in image.timings
