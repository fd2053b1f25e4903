"""Captions say what the facts say, and the picture shows it. Needs the fetched art only for the pixel tests."""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, permutations

import numpy as np
import pytest

pytest.importorskip("PIL")

from simplear_train.concepts import COLOURS, CONCEPTS, HUES
from simplear_train.emoji_scenes import (
    BACKGROUNDS,
    BALANCED_KINDS,
    KINDS,
    SceneMaker,
    is_held_out,
    is_held_out_attribution,
    is_held_out_colour,
    is_held_out_count,
    render,
)
from simplear_train.sprites import PACKAGES, fetch
from simplear_train.worlds import WORLDS


class FakeSprites(dict):
    """Squares of one colour in place of emoji, so that the tests need no download."""

    def __missing__(self, key):
        return np.full((key[2], key[2], 4), 255, np.uint8) * np.array([0, 0, 0, 1], np.uint8)


@pytest.fixture
def maker(monkeypatch):
    import simplear_train.emoji_scenes as module

    monkeypatch.setattr(module, "load_sprites", lambda *args: FakeSprites())
    monkeypatch.setattr(module, "emoji_words", lambda *args: {"cat": ("pet", "animal")})
    return SceneMaker(0, 128)


def names_of(noun: str) -> list[str]:
    concept = next(c for c in CONCEPTS if c.noun == noun)
    icon_labels = [icon.split(":")[1].replace("-", " ") for icon in concept.icons]
    return [concept.noun, concept.plural, *concept.synonyms, *icon_labels]


def is_asked(noun: str) -> bool:
    """Whether EmojiEval may ask for the noun in a colour."""
    return any(c.noun == noun and c.recolour for c in CONCEPTS)


@pytest.mark.parametrize("kinds", KINDS)
def test_captions_name_every_object_colour_and_number(maker, kinds):
    maker.kinds = KINDS[kinds]
    numbers = {2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}
    for index in range(2000):
        scene = maker.scene(index)
        caption = scene.caption.lower()
        for placed in scene.objects:
            assert any(name in caption for name in names_of(placed.noun)), scene
            assert placed.colour is None or re.search(rf"\b{placed.colour}\b", caption), scene
        if scene.kind == "count":
            assert any(re.search(rf"\b{word}\b", caption) for word in numbers[len(scene.objects)]), scene
        if " background" in caption:
            assert re.search(rf"\b{scene.background} background", caption), scene


def test_relations_in_captions_agree_with_the_places(maker):
    for index in range(2000):
        scene = maker.scene(index, kind="pair")
        first, second = scene.objects
        assert (first.x < second.x) if scene.relation == "left of" else (first.y < second.y)
        caption = scene.caption.lower()
        position = {p.noun: min(caption.find(n) for n in names_of(p.noun) if n in caption) for p in scene.objects}
        if any(words in caption for words in ("right of", "below", "under")):
            reversed_order = True
        elif any(words in caption for words in ("left of", "above", "on top of", " and ", " with ", "next to")):
            reversed_order = False
        else:
            pytest.fail(f"no relation in {caption!r}")
        if len(set(position.values())) == 2 and not set(names_of(first.noun)) & set(names_of(second.noun)):
            overlapping = any(a in b or b in a for a in names_of(first.noun) for b in names_of(second.noun))
            assert overlapping or (position[first.noun] > position[second.noun]) == reversed_order, scene


def test_wordings_change_the_caption_but_never_the_facts(maker):
    for index in range(300):
        scenes = [maker.scene(index, wording) for wording in range(4)]
        assert len({(s.kind, s.background, s.objects, s.relation) for s in scenes}) == 1
    assert any(maker.scene(i, 0).caption != maker.scene(i, 1).caption for i in range(5))


def test_held_out_pairs_never_appear(maker):
    scenes = [maker.scene(i, kind="pair") for i in range(2000)]
    assert not any(is_held_out(s.objects[0].noun, s.objects[1].noun) for s in scenes)
    share = np.mean([is_held_out(a.noun, b.noun) for a in CONCEPTS for b in CONCEPTS])
    assert 0.08 < share < 0.12


def test_groups_say_how_many_there_are_of_each_in_reading_order(maker):
    count_of = {"a": 1, "an": 1, "two": 2, "three": 3}
    for index in range(500):
        scene = maker.scene(index, kind="group")
        places = [(p.y, p.x) for p in scene.objects]
        assert places == sorted(places) and len(places) in (3, 4)
        words = re.sub(
            r"^(a photo|a picture|an image|a drawing) of |( on a .*background)?\.?$", "", scene.caption.lower()
        )
        parts = re.split(r", | and ", words)
        counts = [count_of.get(part.split()[0], 1) for part in parts]  # "fries" and the like go without an article
        nouns = [p.noun for p in scene.objects]
        assert len(parts) == len(set(nouns)) >= 2
        assert [noun for noun, n in zip(dict.fromkeys(nouns), counts) for _ in range(n)] == nouns, scene
        for part, noun in zip(parts, dict.fromkeys(nouns)):
            assert any(name in part for name in names_of(noun)), scene


@pytest.mark.parametrize("kinds", KINDS)
def test_nothing_held_out_is_ever_shown(maker, kinds):
    maker.kinds = KINDS[kinds]
    for index in range(3000):
        scene = maker.scene(index)
        numbers = {p.noun: sum(q.noun == p.noun for q in scene.objects) for p in scene.objects}
        assert not any(n > 1 and is_held_out_count(noun, n) for noun, n in numbers.items()), scene
        assert not any(p.colour and is_asked(p.noun) and is_held_out_colour(p.noun, p.colour) for p in scene.objects)
        coloured = sorted({(p.noun, p.colour) for p in scene.objects if p.colour})
        for a, b in combinations(coloured, 2):
            assert a[0] == b[0] or not is_held_out_attribution((a, b)), scene
        for a, b in permutations(scene.objects, 2):
            if a.noun != b.noun and (a.x + a.size <= b.x or a.y + a.size <= b.y):
                assert not is_held_out(a.noun, b.noun), scene


def test_further_hues_are_for_wide_scenes_only(maker):
    for kinds in ("pretraining", "balanced"):
        maker.kinds = KINDS[kinds]
        assert all(p.colour in (None, *COLOURS) for i in range(1000) for p in maker.scene(i).objects)
    tinted = [maker.scene(i, kind="tint").objects[0] for i in range(1000)]
    assert {p.colour for p in tinted} == set(HUES)
    assert not any(is_asked(p.noun) and is_held_out_colour(p.noun, p.colour) for p in tinted)


def test_a_hue_is_met_on_so_many_things_that_it_cannot_be_learnt_by_heart(maker):
    maker.kinds = KINDS["wide"]
    blue = {p.noun for i in range(6000) for p in maker.scene(i).objects if p.colour == "blue"}
    assert len(blue) > 60


def test_several_equal_things_share_one_hue(maker):
    for index in range(500):
        scene = maker.scene(index, kind="tints")
        assert len({(p.noun, p.icon, p.colour) for p in scene.objects}) == 1 and scene.objects[0].colour in HUES
        assert f"{scene.objects[0].colour} " in scene.caption.lower() and len(scene.objects) in (2, 3, 4)


def test_a_small_world_can_be_asked_for_every_task():
    from simplear_train.emojieval.records import TASKS, evaluation_records

    asked = evaluation_records(concepts=WORLDS["small"].concepts)
    nouns = {c.noun for c in WORLDS["small"].concepts}
    assert {r["tag"] for r in asked} == set(TASKS)
    assert all(entry["class"] in nouns for r in asked for entry in r["include"])


def test_balanced_scenes_dwell_on_combinations(maker):
    maker.kinds = BALANCED_KINDS
    scenes = [maker.scene(i) for i in range(1000)]
    for kind, share in BALANCED_KINDS.items():
        assert np.mean([s.kind == kind for s in scenes]) == pytest.approx(share, abs=0.05)
    for scene in scenes:
        if scene.kind == "attribution":
            assert all(p.colour and f"{p.colour} " in scene.caption.lower() for p in scene.objects)


def test_objects_stay_inside_and_apart(maker):
    for index in range(1000):
        scene = maker.scene(index)
        covered = np.zeros((8, 8), int)
        for p in scene.objects:
            assert 0 <= p.x and p.x + p.size <= 8 and 0 <= p.y and p.y + p.size <= 8
            covered[p.y : p.y + p.size, p.x : p.x + p.size] += 1
        assert covered.max() == 1


@pytest.mark.parametrize("side", [64, 128, 256])
def test_render_draws_sprites_where_the_facts_say(maker, side):
    scene = maker.scene(3, kind="count")
    image = render(scene, maker.sprites, side)
    expected = np.empty((side, side, 3), np.uint8)
    expected[:] = BACKGROUNDS[scene.background]
    for p in scene.objects:
        x, y, size = (v * side // 8 for v in (p.x, p.y, p.size))
        expected[y : y + size, x : x + size] = 0
    assert np.array_equal(image, expected)


def test_recolouring_keeps_alpha_and_reaches_the_hue():
    from PIL import Image

    from simplear_train.sprites import recolour

    sprite = np.zeros((8, 8, 4), np.uint8)
    sprite[:, :6] = (220, 40, 40, 255)  # the main hue
    sprite[:, 6:] = (40, 160, 40, 128)  # a leaf
    for colour in COLOURS:
        changed = recolour(sprite, colour)
        assert np.array_equal(changed[..., 3], sprite[..., 3])
        hue = float(np.array(Image.fromarray(changed[..., :3]).convert("HSV"))[0, 0, 0]) * 360 / 255
        assert abs((hue - COLOURS[colour][0] + 180) % 360 - 180) < 8
        assert np.abs(changed[:, 6:].astype(int) - sprite[:, 6:]).max() <= 3


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """make(commands): what `npm` does from now on."""
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    monkeypatch.setenv("PATH", str(npm.parent), prepend=os.pathsep)

    def make(commands):
        npm.write_text(f"#!/bin/sh\n{commands}\n")
        npm.chmod(0o755)

    return make


ART, (_, ART_FILE) = next(iter(PACKAGES.items()))


def test_processes_that_fetch_art_at_once_find_it_whole(fake_npm, tmp_path):
    fake_npm(f"printf half > {ART_FILE}; sleep 0.2; printf ' and half' >> {ART_FILE}")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fetch(ART, tmp_path).read_text(), range(4)))
    assert found == ["half and half"] * 4
    assert [path.name for path in (tmp_path / "npm").iterdir()] == [ART_FILE]


def test_art_that_is_cut_off_leaves_no_half_of_it(fake_npm, tmp_path):
    fake_npm(f"printf half > {ART_FILE}; exit 1")
    with pytest.raises(subprocess.CalledProcessError):
        fetch(ART, tmp_path)
    assert not list((tmp_path / "npm").iterdir())
