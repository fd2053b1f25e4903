"""EmojiEval asks for what training never showed, judges by GenEval's rules, and repeats itself."""

import json
import zlib
from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")

from simplear_engine.checkpoint import DEFAULT_MODEL_FOLDER
from simplear_engine.errors import InvalidRequestError
from simplear_train import emoji_scenes
from simplear_train.concepts import COLOURS, CONCEPTS, OWN_COLOURS
from simplear_train.emoji_scenes import KINDS, SceneMaker
from simplear_train.emojieval import __main__ as command
from simplear_train.emojieval.detector import SIDE, WEIGHTS, Detector, load_detector, save_detector
from simplear_train.emojieval.records import TASKS, asks_for_own_colour, evaluation_records
from simplear_train.emojieval.rules import Detection, judge, relations
from simplear_train.emojieval.score import scores
from simplear_train.emojieval.train_detector import change_one_fact, ideal_scene


@pytest.fixture
def make_scenes(monkeypatch):
    """SceneMakers without the art, which would be a download."""
    monkeypatch.setattr(emoji_scenes, "load_sprites", lambda *args: {})
    monkeypatch.setattr(emoji_scenes, "emoji_words", lambda *args: {})
    return lambda seed, kinds: SceneMaker(seed, SIDE, kinds=kinds)


def facts_of_record(record: dict) -> set:
    """What a record asks for, in the form of `facts_of_scene`."""
    include = record["include"]
    if record["tag"] == "counting":
        return {("count", include[0]["class"], include[0]["count"])}
    if record["tag"] == "colors":
        return {("colour", include[0]["class"], include[0]["color"])}
    nouns = tuple((asked["class"], asked.get("color")) for asked in include)
    if record["tag"] == "position":
        (second, _), (first, _) = nouns
        relation = include[1]["position"][0]
        if relation in ("right of", "below"):
            first, second = second, first
        return {("relation", first, second)}
    if record["tag"] == "two_object":
        return {("together", frozenset(noun for noun, _ in nouns))}
    assert record["tag"] == "color_attr"
    return {("together", frozenset(nouns))}


def facts_of_scene(scene) -> set:
    objects = [replace(p, colour=p.colour or OWN_COLOURS.get(p.noun)) for p in scene.objects]
    facts = {("colour", p.noun, p.colour) for p in objects if p.colour}
    for noun, number in Counter(p.noun for p in objects).items():
        if number > 1:
            facts.add(("count", noun, number))
    for a, b in permutations(objects, 2):
        if a.noun != b.noun:
            facts.add(("together", frozenset((a.noun, b.noun))))
            facts.add(("together", frozenset(((a.noun, a.colour), (b.noun, b.colour)))))
            if a.x + a.size <= b.x or a.y + a.size <= b.y:
                facts.add(("relation", a.noun, b.noun))
    return facts


def detections_of(scene) -> list[Detection]:
    unit = SIDE / 8
    return [
        Detection(
            p.noun, 0.9, p.colour or "red", (p.x * unit, p.y * unit, (p.x + p.size) * unit, (p.y + p.size) * unit)
        )
        for p in scene.objects
    ]


def test_no_scene_of_any_stage_shows_what_is_asked_for_but_things_in_their_own_colour(make_scenes):
    asked, excepted = {}, set()
    for record in evaluation_records():
        if record["tag"] != "single_object":
            asked.update({fact: record["prompt"] for fact in facts_of_record(record)})
        if asks_for_own_colour(record):
            excepted |= facts_of_record(record)
    assert len(asked) > 250
    # docs/emojieval.md has these numbers.
    counts = Counter(record["tag"] for record in evaluation_records() if asks_for_own_colour(record))
    assert counts == {"colors": 1, "color_attr": 17} and ("colour", "balloon", "red") in excepted
    unseen, shown = asked.keys() - excepted, set()
    for seed, kinds in enumerate(KINDS.values()):
        maker = make_scenes(500 * seed, kinds)
        for index in range(4000):
            scene = maker.scene(index)
            for fact in facts_of_scene(scene):
                assert fact not in unseen, f"{asked[fact]!r} was shown by scene {index}: {scene}"
                shown.add(fact)
    # The check above would also pass on scenes that show nothing.
    assert {fact[0] for fact in shown} == {fact[0] for fact in asked}
    assert ("colour", "balloon", "red") in shown


def test_own_colours_are_those_that_the_art_has(tmp_path):
    pytest.importorskip("resvg_py")
    from simplear_train.emojieval.free_scenes import SPRITE_SIDE, named_colours
    from simplear_train.sprites import DEFAULT_CACHE, PACKAGES, load_sprites

    if not all((DEFAULT_CACHE / "npm" / file).exists() for _, file in PACKAGES.values()):
        pytest.skip("the art is a download")
    (tmp_path / "npm").symlink_to(DEFAULT_CACHE / "npm")
    recolourable = tuple(concept for concept in CONCEPTS if concept.recolour)
    assert named_colours(load_sprites((SPRITE_SIDE,), tmp_path, recolourable)) == OWN_COLOURS


def test_seen_prompts_ask_for_nothing_that_is_held_out():
    held_out, seen = (
        {fact for record in records if record["tag"] != "single_object" for fact in facts_of_record(record)}
        for records in (evaluation_records(), evaluation_records(held_out=False))
    )
    assert {fact[0] for fact in seen} == {fact[0] for fact in held_out}
    assert not seen & held_out
    assert list(Counter(r["tag"] for r in evaluation_records(held_out=False))) == list(TASKS)


def test_records_have_genevals_form_and_never_change():
    records = evaluation_records()
    assert records == evaluation_records()
    assert len({r["prompt"] for r in records}) == len(records)
    assert list(Counter(r["tag"] for r in records)) == list(TASKS)
    assert sum(r["tag"] == "single_object" for r in records) == len(CONCEPTS)
    position = next(r for r in records if r["tag"] == "position")
    relation, index = position["include"][1]["position"]
    assert index == 0 and f" {relation} " in position["prompt"]
    counting = next(r for r in records if r["tag"] == "counting")
    assert counting["exclude"][0]["count"] == counting["include"][0]["count"] + 1


def test_a_faithful_picture_passes_and_one_wrong_fact_fails():
    rng = np.random.default_rng(3)
    for record in evaluation_records():
        found = detections_of(ideal_scene(record, rng))
        assert judge(record, found) == (True, ""), record
        changed = change_one_fact(record, rng)
        correct, reason = judge(changed, found)
        assert not correct and reason, changed


def test_detections_below_the_threshold_do_not_count():
    record = {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}
    box = (0, 0, 64, 64)
    assert judge(record, [Detection("cat", 0.31, "red", box)])[0]
    assert judge(record, [Detection("cat", 0.29, "red", box)]) == (False, "expected cat>=1, found 0")


def test_one_animal_too_many_is_a_wrong_count():
    record = {
        "tag": "counting",
        "include": [{"class": "cat", "count": 2}],
        "exclude": [{"class": "cat", "count": 3}],
    }
    cats = [Detection("cat", 0.9, "red", (x, 0, x + 30, 30)) for x in (0, 40, 80)]
    assert judge(record, cats[:2])[0]
    assert judge(record, cats) == (False, "expected cat<3, found 3")


@pytest.mark.parametrize(
    "box, expected",
    [
        ((60, 0, 100, 40), {"right of"}),
        ((0, 60, 40, 100), {"below"}),
        ((60, 60, 100, 100), {"right of", "below"}),
        ((2, 1, 42, 41), set()),  # hardly moved
        ((60, 12, 100, 52), {"right of"}),  # somewhat lower, but mostly to the right
    ],
)
def test_relations_follow_the_main_direction(box, expected):
    home = (0, 0, 40, 40)
    assert relations(box, home) == expected
    opposite = {"right of": "left of", "below": "above"}
    assert relations(home, box) == {opposite[name] for name in expected}


def test_overall_is_the_mean_of_tasks_whatever_their_sizes():
    records = [{"tag": task} for task in TASKS for _ in range(20 if task == "position" else 2)]
    correct = np.array([[r["tag"] != "position"] * 4 for r in records])
    result = scores(records, correct)
    assert result["tasks"]["position"]["score"] == 0 and result["tasks"]["colors"]["score"] == 1
    assert result["overall"]["score"] == round(5 / 6, 4)
    assert result["overall"]["interval"] == [result["overall"]["score"]] * 2  # nothing varied


def test_a_world_that_is_too_small_for_a_task_has_no_score():
    with pytest.raises(InvalidRequestError, match="nothing to ask for two_object"):
        scores([{"tag": "single_object"}], np.ones((1, 4), bool))


def test_pictures_of_one_prompt_do_not_narrow_the_interval():
    records = [{"tag": task} for task in TASKS for _ in range(30)]
    passed = np.tile(np.arange(30) % 2 == 0, len(TASKS))
    alike = scores(records, np.repeat(passed[:, None], 4, 1))
    single = scores(records, passed[:, None])
    widths = [np.subtract(*r["overall"]["interval"][::-1]) for r in (alike, single)]
    assert widths[0] == pytest.approx(widths[1], rel=0.15) and widths[0] > 0.05


def test_detector_recognises_what_the_default_model_draws():
    from simplear_engine import Engine

    nouns = ["cat", "panda", "robot", "rocket", "pizza", "house", "tree", "star", "owl", "crab"]
    with Engine.from_pretrained("default") as engine:
        images = np.stack([np.asarray(i.pil) for i in engine.generate([f"a {n}" for n in nouns], seed=5)])
        blank = np.full_like(images[:1], 240)
    detector = load_detector()
    found = detector.detect(images)
    recognised = [f[0] for noun, f in zip(nouns, found) if f and f[0].noun == noun and f[0].confidence > 0.3]
    assert len(recognised) >= 9
    assert not [d for d in detector.detect(blank)[0] if d.confidence > 0.3]
    for thing in recognised:
        # A single thing is three quarters as wide as the picture, so its centre cannot be far from the middle.
        left, top, right, bottom = thing.box
        assert 40 < (left + right) / 2 < 88 and 40 < (top + bottom) / 2 < 88


def test_weights_for_other_concepts_are_refused(tmp_path, monkeypatch):
    from simplear_engine.errors import CheckpointError
    from simplear_train.emojieval import detector as module

    save_detector(Detector(), tmp_path / "detector.safetensors")
    load_detector(tmp_path / "detector.safetensors")
    monkeypatch.setattr(module, "NOUNS", (*module.NOUNS[:-1], "zebra"))
    with pytest.raises(CheckpointError, match="other nouns"):
        load_detector(tmp_path / "detector.safetensors")
    with pytest.raises(CheckpointError, match="train_detector"):
        load_detector(tmp_path / "missing.safetensors")


def test_detector_says_what_pictures_it_takes():
    from simplear_engine.errors import InvalidRequestError

    with pytest.raises(InvalidRequestError, match=r"expected uint8 \[N, 128, 128, 3\], got uint8 \[1, 64, 64, 3\]"):
        load_detector().detect(np.zeros((1, 64, 64, 3), np.uint8))


def test_scores_of_a_hub_id_name_the_weights_that_drew(tmp_path, monkeypatch):
    few = [next(r for r in evaluation_records() if r["tag"] == task) for task in TASKS]
    monkeypatch.setattr(command, "evaluation_records", lambda *asked: few)
    expected = command.evaluate("default", tmp_path, num_pictures=1)["sha256"]["weights"]
    monkeypatch.setattr("simplear_engine.checkpoint._download", lambda *_: DEFAULT_MODEL_FOLDER)
    assert command.evaluate("owner/name", tmp_path, num_pictures=1)["sha256"]["weights"] == expected != {}


def test_command_writes_scores_that_repeat(tmp_path, monkeypatch, capsys):
    few = [next(r for r in evaluation_records() if r["tag"] == task) for task in TASKS]
    monkeypatch.setattr(command, "evaluation_records", lambda *asked: few)
    results = []
    for name in ("first", "second"):
        arguments = ["emojieval", "--model", "default", "--out", str(tmp_path / name), "--seed", "3", "--keep-pictures"]
        monkeypatch.setattr("sys.argv", arguments)
        command.main()
        results.append(json.loads((tmp_path / name / "scores.json").read_text()))
    assert results[0] == results[1]
    assert set(results[0]["tasks"]) == set(TASKS)
    assert "overall" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "first" / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * len(few) and len({line["seed"] for line in lines}) == len(lines)
    shares = [np.mean([line["correct"] for line in lines if line["tag"] == task]) for task in TASKS]
    assert results[0]["overall"]["score"] == pytest.approx(np.mean(shares), abs=1e-4)
    for name in (*TASKS, "overview"):
        assert (tmp_path / "first" / f"{name}.png").stat().st_size > 1000
    folder = tmp_path / "first" / "00001"
    assert json.loads((folder / "metadata.jsonl").read_text()) == few[1]
    assert len(list((folder / "samples").glob("*.png"))) == 4
    assert results[0]["sha256"]["detector"] and WEIGHTS.name.endswith(".safetensors")


def test_more_pictures_of_a_prompt_all_count(tmp_path, monkeypatch):
    few = [next(r for r in evaluation_records() if r["tag"] == task) for task in TASKS]
    monkeypatch.setattr(command, "evaluation_records", lambda *asked: few)
    monkeypatch.setattr("sys.argv", ["emojieval", "--model", "default", "--out", str(tmp_path), "--pictures", "6"])
    command.main()
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len({line["seed"] for line in lines}) == len(lines) == 6 * len(few)
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["pictures_per_prompt"] == 6
    for task in TASKS:
        verdicts = [line["correct"] for line in lines if line["tag"] == task]
        assert result["tasks"][task]["score"] == pytest.approx(np.mean(verdicts), abs=1e-4)


class Squares(dict):
    """Stands in for the art: every icon is a square of a colour of its own."""

    def __missing__(self, key):
        icon, colour, side = key
        rgb = np.random.default_rng(zlib.crc32(f"{icon} {colour}".encode())).integers(0, 256, 3)
        self[key] = np.full((side, side, 4), (*rgb, 255), np.uint8)
        return self[key]


def test_detector_that_goes_on_from_a_checkpoint_equals_one_that_was_never_cut_off(tmp_path):
    from simplear_train.emojieval.free_scenes import FreeScenes
    from simplear_train.emojieval.train_detector import DetectorTraining
    from simplear_train.loop import Loop, LoopConfig
    from simplear_train.parallel import ALONE

    config = LoopConfig(steps=2, learning_rate=1e-3, compute_dtype="float32")
    for name, stops in (("straight", [None]), ("halved", [1, None])):
        for stop_at in stops:
            stage = DetectorTraining(FreeScenes(5, Squares()), 2, tmp_path / name, "cpu", ALONE)
            Loop(stage, config, tmp_path / name, "cpu").run(resume=True, stop_at=stop_at)
    straight, halved = (load_detector(tmp_path / name / WEIGHTS.name).state_dict() for name in ("straight", "halved"))
    for name, value in straight.items():
        assert value.equal(halved[name]), name
    fresh = Detector().state_dict()
    assert not straight["backbone.2.running_mean"].equal(fresh["backbone.2.running_mean"])


def test_scenes_without_a_known_colour_have_gradients_for_it_too():
    """Processes lay theirs end to end, so that one that has fewer would be added to the wrong ones."""
    import torch

    from simplear_train.emojieval.free_scenes import UNKNOWN, FreeScenes
    from simplear_train.emojieval.train_detector import detector_loss

    torch.manual_seed(0)
    images, targets = FreeScenes(6, Squares()).batch(0, 4)
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    for name in ("as they are", "no colour", "nothing"):
        if name == "no colour":
            targets.colour[:] = UNKNOWN
        if name == "nothing":
            targets.noun[:], targets.presence[:] = UNKNOWN, 0
        detector = Detector()
        detector_loss(detector(inputs), targets).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
        assert detector.colour.weight.grad.any() == (name == "as they are")


def test_free_scenes_mark_what_they_show():
    from simplear_train.emojieval.detector import CELLS, NOUNS, STRIDE
    from simplear_train.emojieval.free_scenes import FreeScenes

    images, targets = FreeScenes(6, Squares()).batch(0, 40)
    centres = np.argwhere(targets.presence == 1)
    assert len(centres) > 60
    for i, row, column in centres:
        noun = NOUNS[targets.noun[i, row, column]]
        dx, dy, log_width, log_height = targets.box[i, :, row, column]
        x, y = (column + 0.5 + dx) * STRIDE, (row + 0.5 + dy) * STRIDE
        assert 0 <= dx + 0.5 <= 1 and 0 <= dy + 0.5 <= 1 and 0 <= row < CELLS
        half_width, half_height = np.exp(log_width) * STRIDE / 2, np.exp(log_height) * STRIDE / 2
        shown = images[i, int(y), int(x)]
        concept = next(c for c in CONCEPTS if c.noun == noun)
        colours = [concept.icons[0]] if not concept.recolour else [concept.icons[0], concept.recolour]
        possible = [Squares()[icon, c, 1][0, 0, :3] for icon in colours for c in (None, *COLOURS)]
        assert any(np.abs(shown.astype(int) - p).max() <= 1 for p in possible), (noun, shown)
        assert 15 < half_width < 60 and 15 < half_height < 60
