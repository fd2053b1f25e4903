"""Rewards see the caption that the user typed, say what is missing, and never make up a score."""

import base64
import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")

from simplear_engine.errors import CheckpointError, InvalidRequestError, UnsupportedError
from simplear_train.rewards import REWARDS, RewardConfig, WeightedRewards, make_reward
from simplear_train.rewards.http_service import HttpReward, ServiceError
from simplear_train.rewards.object_count import count_score, wanted_counts
from simplear_train.rewards.ocr import OcrReward, likeness, quoted

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
PROMPTS = ["two tigers", "a photo of three pizzas", "a fox"]


@pytest.fixture
def service():
    """A reward service; `answer` is a function from the request's JSON to a body, `seen` what came."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.seen.append(request)
            body = server.answer(request).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    server.url = f"http://127.0.0.1:{server.server_port}/score"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_service_sees_whole_prompts_and_exact_pictures(service):
    from PIL import Image

    service.answer = lambda request: json.dumps({"scores": [0.5, None, 2]})
    scores = HttpReward(service.url).score(PROMPTS, IMAGES)
    assert scores.dtype == np.float32 and scores[0] == 0.5 and np.isnan(scores[1]) and scores[2] == 2
    assert service.seen[0]["prompts"] == PROMPTS
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for p in service.seen[0]["images"]]
    assert np.array_equal(np.stack(decoded), IMAGES)


@pytest.mark.parametrize(
    "body, message",
    [
        ('{"scores": [1, 2]}', "expected .*3 numbers.* got 2 scores"),
        ('{"scores": [1, 2, "high"]}', "expected numbers or null"),
        ('{"error": "busy"}', "busy"),
        ("not json", "Expecting value"),
    ],
)
def test_wrong_answers_of_a_service_are_errors(service, body, message):
    service.answer = lambda request: body
    with pytest.raises(ServiceError, match=message):
        HttpReward(service.url).score(PROMPTS, IMAGES)


def test_dead_service_is_a_counted_failure_and_no_score():
    rewards = WeightedRewards({"http": (HttpReward("http://127.0.0.1:9/score", timeout_s=2), 1.0)}, max_failures=2)
    scores = rewards.score(PROMPTS, IMAGES)
    assert np.isnan(scores.total).all() and "127.0.0.1:9" in scores.failures["http"]
    with pytest.raises(Exception, match="2 steps in a row"):
        rewards.score(PROMPTS, IMAGES)


def test_every_short_name_leads_to_a_class():
    import importlib

    assert {"emoji_clip", "clip", "open_clip", "hpsv2", "aesthetic", "ocr", "detector", "http"} <= set(REWARDS)
    for path in REWARDS.values():
        module, name = path.split(":")
        assert callable(getattr(importlib.import_module(module), name).score)


@pytest.mark.parametrize(
    "name, module, options, package",
    [
        ("open_clip", "open_clip", {"weights": "w.safetensors"}, "open_clip_torch"),
        ("hpsv2", "open_clip", {"weights": "w.safetensors"}, "open_clip_torch"),
        ("clip", "transformers", {"folder": "w"}, "transformers"),
        ("ocr", "rapidocr_onnxruntime", {}, "rapidocr_onnxruntime"),
        ("detector", "transformers", {"folder": "w"}, "transformers"),
    ],
)
def test_missing_package_is_named_with_the_reward_that_wants_it(monkeypatch, name, module, options, package):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(
        UnsupportedError, match=f"reward '{name if name != 'hpsv2' else 'open_clip'}'.*pip install {package}"
    ):
        make_reward(RewardConfig(name, options=options))


def test_pickled_weights_are_refused_unless_allowed(tmp_path):
    from simplear_train.rewards.clip import read_weights

    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match="allow_pickle"):
        read_weights(tmp_path / "clip.pt", allow_pickle=False)
    assert read_weights(tmp_path / "clip.pt", allow_pickle=True)["a"].sum() == 2
    with pytest.raises(CheckpointError, match="expected a file"):
        read_weights(tmp_path / "none.safetensors", allow_pickle=False)


def test_aesthetic_head_of_several_layers_is_one_linear_map(tmp_path):
    from simplear_train.rewards.aesthetic import as_one_layer

    torch.manual_seed(0)
    layers = [torch.nn.Linear(6, 5), torch.nn.Linear(5, 3), torch.nn.Linear(3, 1)]
    tensors = {f"layers.{2 * i}.{n}": p for i, layer in enumerate(layers) for n, p in layer.named_parameters()}
    weight, bias = as_one_layer(tensors, tmp_path)
    x = torch.randn(4, 6)
    expected = layers[2](layers[1](layers[0](x)))
    assert torch.allclose(torch.nn.functional.linear(x, weight, bias), expected, atol=1e-6)
    with pytest.raises(CheckpointError, match="expected one output, got 5"):
        as_one_layer({"weight": torch.ones(5, 6), "bias": torch.ones(5)}, tmp_path)


@pytest.mark.parametrize(
    "prompt, text",
    [
        ('a sign that says "OPEN"', "OPEN"),
        ("a shop called “Bert’s”", "Bert’s"),
        ("a note with 'hi there' on it", "hi there"),
        ("the dog's bowl", None),
    ],
)
def test_ocr_looks_for_what_is_quoted(prompt, text):
    assert quoted(prompt) == text


def test_likeness_counts_letters():
    assert likeness("OPEN", "open") == 1
    assert likeness("OPEN", "OPN") == pytest.approx(0.75)
    assert likeness("OPEN", "o p e n") == 1
    assert likeness("OPEN", "") == 0
    assert likeness("OPEN", "something quite different") == 0


def test_ocr_has_no_answer_for_a_prompt_without_quotation(monkeypatch):
    class Reader:
        def __call__(self, image):
            return [[None, "OPEN", 0.9]], None

    class Package:
        RapidOCR = Reader

    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", Package)
    scores = OcrReward().score(['a sign "OPEN"', "a cat"], IMAGES[:2])
    assert scores[0] == 1 and np.isnan(scores[1])


@pytest.mark.parametrize(
    "prompt, counts",
    [
        ("two dogs and a red car", {"dog": 2, "car": 1}),
        ("a hot dog", {"hot dog": 1}),
        ("three buses", {"bus": 3}),
        ("a photo of four teddies", {}),
        ("carpets", {}),
    ],
)
def test_counts_are_read_from_prompts(prompt, counts):
    assert wanted_counts(prompt, ["dog", "car", "hot dog", "bus"]) == counts


def test_count_score_falls_with_the_distance_and_is_unknown_without_things():
    assert count_score({"dog": 2}, {"dog": 2}) == 1
    assert count_score({"dog": 2}, {"dog": 3}) == 0.5
    assert count_score({"dog": 2, "car": 1}, {"dog": 2}) == 0.5
    assert np.isnan(count_score({}, {"dog": 1}))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of a few thousand parameters in transformers' layout."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    words = ["<pad>", "<end>", "two", "wo", "tigers", "tiger", "a", "photo", "of", "three", "pizzas", "fox"]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<end>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", unk_token="<end>", model_max_length=8
    )
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**text, "vocab_size": len(words), "max_position_embeddings": 8, "eos_token_id": 1},
        vision_config={**text, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    image_processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    transformers.CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


def test_clip_reward_is_the_cosine_and_reads_plurals(clip_folder):
    reward = make_reward(RewardConfig("clip", options={"folder": str(clip_folder), "batch_size": 2}))
    scores = reward.score(PROMPTS, IMAGES)
    assert scores.shape == (3,) and (np.abs(scores) <= 1).all()
    alone = [reward.score([p], IMAGES[i : i + 1])[0] for i, p in enumerate(PROMPTS)]
    assert np.allclose(scores, alone, atol=1e-5)  # batches change nothing
    stripped = reward.score(["wo tiger", *PROMPTS[1:]], IMAGES)
    assert stripped[0] != scores[0] and np.allclose(stripped[1:], scores[1:], atol=1e-6)


def test_folder_without_a_clip_is_named(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(CheckpointError, match="expected a folder with a CLIP model"):
        make_reward(RewardConfig("clip", options={"folder": str(tmp_path / "none")}))
    with pytest.raises(InvalidRequestError, match="expected http"):
        make_reward(RewardConfig("http", options={"url": "localhost:80"}))


@pytest.fixture(scope="module")
def emoji_clip():
    from simplear_train.rewards.emoji_clip import ClipConfig, EmojiClip
    from simplear_train.text_tokenizer import train_text_tokenizer

    torch.manual_seed(0)
    tokenizer = train_text_tokenizer(["two tigers and a fox"], 300)
    return EmojiClip(ClipConfig(tokenizer.get_vocab_size(), 16, 16, 1, 2, 32, 2), tokenizer)


def test_emoji_clip_survives_its_file_and_ignores_case(emoji_clip, tmp_path):
    from simplear_train.rewards.emoji_clip import EmojiClipReward

    emoji_clip.save(tmp_path)
    reward = EmojiClipReward(str(tmp_path), batch_size=2)
    scores = reward.score(PROMPTS, IMAGES)
    pixels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = (emoji_clip.image_vectors(pixels) * emoji_clip.text_vectors(PROMPTS)).sum(-1).numpy()
    assert np.allclose(scores, expected, atol=5e-3)  # weights are stored as float16
    assert np.allclose(reward.score(["Two tigers.", *PROMPTS[1:]], IMAGES), scores, atol=1e-6)
    assert reward.score(["wo tiger", *PROMPTS[1:]], IMAGES)[0] != scores[0]
    with pytest.raises(CheckpointError, match="train_emoji_clip"):
        EmojiClipReward(str(tmp_path / "none"))


@pytest.fixture
def scene_maker(monkeypatch):
    """Of scenes whose sprites are plain squares, each thing in a shade of its own."""
    from simplear_train import emoji_scenes

    class Squares:
        def __getitem__(self, key):
            icon, colour, size = key
            shade = np.frombuffer(f"{icon}{colour}".encode().rjust(64), np.uint8).astype(int)
            pixel = [*(int(shade @ np.arange(i, i + 64)) % 200 for i in (1, 2, 3)), 255]
            return np.broadcast_to(np.array(pixel, np.uint8), (size, size, 4))

    monkeypatch.setattr(emoji_scenes, "load_sprites", lambda *args: Squares())
    monkeypatch.setattr(emoji_scenes, "emoji_words", lambda *args: {})
    return emoji_scenes.SceneMaker(1, 128, kinds=emoji_scenes.BALANCED_KINDS)


def test_wrong_scenes_differ_from_the_true_one_in_words_and_picture(scene_maker):
    from simplear_train.emoji_scenes import render
    from simplear_train.rewards.train_emoji_clip import wrong_by_one

    rng = np.random.default_rng(0)
    said = 0
    for index in range(500):
        scene = scene_maker.scene(index)
        wrong = wrong_by_one(scene, scene_maker, rng)
        facts = [(s.relation, [(p.noun, p.colour) for p in s.objects]) for s in (scene, wrong)]
        assert facts[0] != facts[1]
        said += scene_maker.describe(wrong, (1, index, 1)) != scene.caption
        pictures = [render(s, scene_maker.sprites, 128) for s in (scene, wrong)]
        assert (pictures[0] != pictures[1]).any()
        places = [(p.x, p.y) for p in wrong.objects]
        assert len(set(places)) == len(places), "things stand on each other"
    assert said > 495  # a tag or a synonym may hide the change once in a while


def test_half_of_a_thing_is_cut_away(scene_maker):
    from simplear_train.rewards.train_emoji_clip import cut_in_half

    rng = np.random.default_rng(0)
    for index in range(50):
        scene = scene_maker.scene(index)
        picture = scene_maker.picture(index)
        other = np.full_like(picture, 251)
        damaged = cut_in_half(picture, other, scene, rng)
        gone = (damaged == 251).all(-1)
        assert np.array_equal(damaged[~gone], picture[~gone])
        halves = []
        for placed in scene.objects:
            x, y, size = (16 * length for length in (placed.x, placed.y, placed.size))
            halves.append(gone[y : y + size, x : x + size].mean())
        assert sorted(halves)[-1] == 0.5 and sum(halves) == 0.5


def test_reward_sees_no_picture_of_what_is_held_out(scene_maker, monkeypatch):
    from simplear_train import emoji_scenes
    from simplear_train.rewards import train_emoji_clip

    drawn = []
    monkeypatch.setattr(
        train_emoji_clip, "render", lambda scene, *rest: drawn.append(scene) or emoji_scenes.render(scene, *rest)
    )
    pairs = train_emoji_clip.Pairs(scene_maker, None, "cpu")
    images, captions, wrong = pairs.batch(range(300))
    assert len(drawn) == 600 and len(images) == 900 and len(captions) == len(wrong) == 300
    assert not any(map(emoji_scenes.shows_held_out, drawn))
    again, *_ = pairs.batch(range(300))
    assert torch.equal(images, again)
