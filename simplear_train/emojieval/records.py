"""The prompts of EmojiEval, each with the facts that its picture must show, in GenEval's record format.

    {"tag": "position", "include": [{"class": "cat", "count": 1},
                                    {"class": "dog", "count": 1, "position": ["right of", 0]}],
     "prompt": "a photo of a dog right of a cat"}

`position` names a relation to another entry of `include`; `color` is a colour's name; `exclude` holds classes and
counts that must not be reached. Apart from the single objects, which have to be known, every prompt states a fact
that emoji_scenes holds out: no scene of any stream shows it, but for 18 prompts that `asks_for_own_colour` names. Their
red thing is red by itself, and plain scenes show it: "a red balloon" (colors), and 17 of color_attr. With `held_out`
false it states one that scenes do show; the difference between the two is what a model has learnt by heart. A model of a
smaller world is asked for its concepts only.
"""

from itertools import combinations, permutations

import numpy as np

from ..concepts import COLOURS, CONCEPTS, OWN_COLOURS, Concept
from ..emoji_scenes import (
    NUMBER_WORDS,
    is_held_out,
    is_held_out_attribution,
    is_held_out_colour,
    is_held_out_count,
    with_article,
)

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
MAX_PER_TASK = 80  # of the tasks that hold out more than that


def phrase(concept: Concept, colour: str | None = None) -> str:
    words = f"{colour} {concept.noun}" if colour else concept.noun
    return words if concept.is_mass else with_article(words)


def record(tag: str, words: str, include: list[dict], exclude: list[dict] | None = None) -> dict:
    entry = {"tag": tag, "include": include}
    if exclude:
        entry["exclude"] = exclude
    return {**entry, "prompt": f"a photo of {words}"}


def asks_for_own_colour(record: dict) -> bool:
    """Whether a thing is asked for in the colour that it has anyway, and in which plain scenes show it."""
    return any("color" in asked and OWN_COLOURS.get(asked["class"]) == asked["color"] for asked in record["include"])


def single_object(held_out: bool, concepts: tuple[Concept, ...]) -> list[dict]:
    return [record("single_object", phrase(c), [{"class": c.noun, "count": 1}]) for c in concepts]


def two_object(held_out: bool, concepts: tuple[Concept, ...]) -> list[dict]:
    """Neither of the two orders is ever seen, or both are."""
    return [
        record(
            "two_object",
            f"{phrase(a)} and {phrase(b)}",
            [{"class": a.noun, "count": 1}, {"class": b.noun, "count": 1}],
        )
        for a, b in combinations(concepts, 2)
        if is_held_out(a.noun, b.noun) == is_held_out(b.noun, a.noun) == held_out
    ]


def counting(held_out: bool, concepts: tuple[Concept, ...]) -> list[dict]:
    return [
        record(
            "counting",
            f"{word} {concept.plural}",
            [{"class": concept.noun, "count": count}],
            [{"class": concept.noun, "count": count + 1}],
        )
        for concept in concepts
        for count, word in NUMBER_WORDS.items()
        if not concept.is_mass and is_held_out_count(concept.noun, count) == held_out
    ]


def colors(held_out: bool, concepts: tuple[Concept, ...]) -> list[dict]:
    return [
        record("colors", phrase(concept, colour), [{"class": concept.noun, "count": 1, "color": colour}])
        for concept in concepts
        for colour in COLOURS
        if concept.recolour and is_held_out_colour(concept.noun, colour) == held_out
    ]


def position(held_out: bool, concepts: tuple[Concept, ...]) -> list[dict]:
    records = []
    for a, b in permutations(concepts, 2):
        if is_held_out(a.noun, b.noun) != held_out:
            continue
        for relation in ("left of", "above"):
            # "a left of b" is the held-out fact; "b right of a" says the same.
            for first, second, words in ((a, b, relation), (b, a, OPPOSITE[relation])):
                include = [{"class": second.noun, "count": 1}]
                include.append({"class": first.noun, "count": 1, "position": [words, 0]})
                records.append(record("position", f"{phrase(first)} {words} {phrase(second)}", include))
    return records


def color_attr(held_out: bool, concepts: tuple[Concept, ...]) -> list[dict]:
    coloured = [
        (concept, colour)
        for concept in concepts
        for colour in COLOURS
        if concept.recolour and not is_held_out_colour(concept.noun, colour)
    ]
    return [
        record(
            "color_attr",
            f"{phrase(a, a_colour)} and {phrase(b, b_colour)}",
            [{"class": a.noun, "count": 1, "color": a_colour}, {"class": b.noun, "count": 1, "color": b_colour}],
        )
        for (a, a_colour), (b, b_colour) in combinations(coloured, 2)
        if a is not b
        and a_colour != b_colour
        and is_held_out_attribution(((a.noun, a_colour), (b.noun, b_colour))) == held_out
    ]


def evaluation_records(held_out: bool = True, concepts: tuple[Concept, ...] = CONCEPTS) -> list[dict]:
    """The same list on every call: six tasks in the order of TASKS."""
    records = []
    for task in (single_object, two_object, counting, colors, position, color_attr):
        every = task(held_out, concepts)
        if task is not single_object and len(every) > MAX_PER_TASK:
            chosen = np.random.default_rng(0).choice(len(every), MAX_PER_TASK, replace=False)
            every = [every[i] for i in sorted(chosen)]
        records += every
    return records
