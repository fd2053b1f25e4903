"""Pictures of emoji with captions that are true by construction.

    python -m simplear_train.emoji_scenes --sheet scenes.png                           64 scenes and their captions
    python -m simplear_train.emoji_scenes --kinds wide --prompts prompts.txt           captions alone, for reinforcement

Scene number `index` of a stream `seed` is a pure function of the two, so nothing is stored: every stage renders what
it needs (about 2,000 scenes/s on one core). A scene is its facts, the picture is drawn from the facts, and so is
the caption; whoever scores pictures later compares with the facts, not with words.

The distribution is narrow on purpose, so that a model of a few million parameters can learn it in an hour on a CPU:
sprites exist at two sizes, stand on a grid of eighths (one visual token each), and backgrounds are plain.

Some facts never occur, so that emojieval can ask for them: a tenth of the ordered pairs of concepts (a cat left of or
above a dog), a fifth of the counts (three cats), a fifth of the coloured things (a blue car), and a tenth of the
pairs of two coloured things. Which ones follows from a hash of the words. Coloured is what a replaced hue makes of a
thing: a balloon, which is red by itself, is shown plain although "red balloon" is held out (emojieval/records.py counts
such prompts).
"""

import argparse
import zlib
from dataclasses import dataclass, replace
from itertools import combinations, groupby, permutations
from pathlib import Path

import numpy as np

from .concepts import COLOURS, CONCEPTS, HUES, Concept
from .sprites import DEFAULT_CACHE, Sprites, emoji_words, load_sprites

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "blue": (205, 230, 250),
    "pink": (252, 222, 228),
    "green": (216, 242, 214),
}
# Lengths are in eighths of the picture's side, which is one visual token when a side is eight tokens.
LARGE, SMALL = 6, 4
NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}
# (left, top) of each sprite, for scenes of several equal ones
COUNT_LAYOUTS = {
    2: ((0, 2), (4, 2)),
    3: ((2, 0), (0, 4), (4, 4)),
    4: ((0, 0), (4, 0), (0, 4), (4, 4)),
}
PAIR_LAYOUTS = {"left of": ((0, 2), (4, 2)), "above": ((2, 0), (2, 4))}


# What a stream shows, by share. Pretraining learns the things; fine-tuning dwells on how they combine. The wide stream
# is there against learning by heart: with groups ("two cats and a dog") everything stands everywhere beside everything,
# so that a count is no picture of its own, and further hues on further things fill the gaps between the colours.
PRETRAINING_KINDS = {"single": 0.46, "colour": 0.14, "count": 0.15, "pair": 0.25}
BALANCED_KINDS = {"single": 0.12, "colour": 0.10, "count": 0.22, "pair": 0.36, "attribution": 0.20}
WIDE_KINDS = {
    "single": 0.12, "colour": 0.08, "tint": 0.20, "count": 0.12, "tints": 0.10, "pair": 0.14, "attribution": 0.06,
    "group": 0.18,
}  # fmt: skip
# What to be rewarded for: counts, which leave most to gain, and enough of everything else that nothing is forgotten.
REINFORCEMENT_KINDS = {"single": 0.30, "count": 0.40, "colour": 0.10, "pair": 0.10, "attribution": 0.10}
KINDS = {
    "pretraining": PRETRAINING_KINDS, "balanced": BALANCED_KINDS, "wide": WIDE_KINDS,
    "reinforcement": REINFORCEMENT_KINDS,
}  # fmt: skip


@dataclass(frozen=True)
class Placed:
    noun: str
    icon: str
    colour: str | None  # a replaced hue, or None for the icon's own colours
    x: int  # left edge, in eighths of the picture's side
    y: int  # top edge
    size: int  # side of the square that holds the sprite


@dataclass(frozen=True)
class Scene:
    # single, colour, tint, count, tints (several equal ones in one hue), pair, attribution (a pair of two coloured things),
    # or group
    kind: str
    background: str
    objects: tuple[Placed, ...]
    relation: str | None  # of objects[0] to objects[1], for pairs: "left of" or "above"
    caption: str


def with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" and not words.startswith("u") else "a ") + words


def is_held_out(first: str, second: str) -> bool:
    """Whether no scene shows `first` left of or above `second`."""
    return zlib.crc32(f"{first}|{second}".encode()) % 10 == 0


def is_held_out_count(noun: str, count: int) -> bool:
    return zlib.crc32(f"{count} of {noun}".encode()) % 5 == 0


def is_held_out_colour(noun: str, colour: str) -> bool:
    return zlib.crc32(f"{colour} {noun}".encode()) % 5 == 0


def is_held_out_attribution(coloured: tuple[tuple[str, str], tuple[str, str]]) -> bool:
    """Of two (noun, colour), in any order and at any place."""
    return zlib.crc32("|".join(f"{colour} {noun}" for noun, colour in sorted(coloured)).encode()) % 10 == 0


def shows_held_out(scene: Scene) -> bool:
    """Whether the scene's facts are among those that no training scene shows."""
    coloured, counts = [], {}
    for placed in scene.objects:
        counts[placed.noun] = counts.get(placed.noun, 0) + 1
        fact = (placed.noun, placed.colour)
        if placed.colour and fact not in coloured:
            coloured.append(fact)
    recoloured = {c.noun for c in CONCEPTS if c.recolour}
    ordered = combinations([p.noun for p in scene.objects], 2)
    if scene.relation is None:
        ordered = permutations(counts, 2)
    return (
        any(count > 1 and is_held_out_count(noun, count) for noun, count in counts.items())
        or any(noun in recoloured and is_held_out_colour(noun, colour) for noun, colour in coloured)
        or any(is_held_out(first, second) for first, second in ordered)
        or any(is_held_out_attribution(both) for both in combinations(coloured, 2))
    )


def render(scene: Scene, sprites: Sprites, side: int) -> np.ndarray:
    """uint8 [side, side, 3]. Sprites are composited in order; they never overlap."""
    image = np.empty((side, side, 3), np.uint8)
    image[:] = BACKGROUNDS[scene.background]
    for placed in scene.objects:
        x, y, size = (length * side // 8 for length in (placed.x, placed.y, placed.size))
        sprite = sprites[placed.icon, placed.colour, size]
        window = image[y : y + size, x : x + size]
        alpha = sprite[..., 3:].astype(np.uint16)
        window[:] = (sprite[..., :3] * alpha + window * (255 - alpha) + 127) // 255
    return image


class SceneMaker:
    """Draws scenes. `concepts` shrinks the world for the smoke world and for tests; `kinds` are shares that add up
    to 1."""

    def __init__(
        self, seed: int, side: int, cache_dir: Path = DEFAULT_CACHE, concepts: tuple[Concept, ...] = CONCEPTS,
        kinds: dict[str, float] = PRETRAINING_KINDS,
    ):  # fmt: skip
        if "attribution" in kinds and sum(c.recolour is not None for c in concepts) < 2:
            raise ValueError("kinds: attribution needs two concepts that may be recoloured")
        self.seed = seed
        self.side = side
        self.concepts = concepts
        self.kinds = kinds
        self.sprites = load_sprites((LARGE * side // 8, SMALL * side // 8), cache_dir, concepts)
        words = emoji_words(cache_dir)
        self.tags = {icon: words.get(icon.split(":")[1], ()) for c in concepts for icon in c.icons}

    def scene(self, index: int, wording: int = 0, kind: str | None = None) -> Scene:
        """Scene `index`, described in words number `wording`: same facts, same picture, another caption."""
        rng = np.random.default_rng((self.seed, index))
        kind = kind or str(rng.choice(list(self.kinds), p=list(self.kinds.values())))
        background = str(rng.choice(list(BACKGROUNDS)))
        build = {
            "single": self._single, "colour": self._colour, "count": self._count, "pair": self._pair,
            "attribution": self._attribution, "tint": self._tint, "tints": self._tints, "group": self._group,
        }[kind]  # fmt: skip
        objects, relation = build(rng)
        facts = Scene(kind, background, tuple(objects), relation, "")
        return replace(facts, caption=self.describe(facts, (self.seed, index, 1 + wording)))

    def describe(self, scene: Scene, seed) -> str:
        """A caption of the scene's facts. Scenes that differ in one fact get, from one seed, captions that differ in
        little more."""
        say = np.random.default_rng(seed)
        words = {
            "single": self._say_single, "colour": self._say_single, "tint": self._say_single, "count": self._say_count,
            "tints": self._say_count, "group": self._say_group,
        }  # fmt: skip
        caption = words.get(scene.kind, self._say_pair)(say, scene)
        if say.random() < 0.10:
            shade = say.choice(["", "light "]) if scene.background != "white" else ""
            caption += f" on a {shade}{scene.background} background"
        if say.random() < 0.1:
            caption = caption[0].upper() + caption[1:]
        return caption

    def picture(self, index: int) -> np.ndarray:
        return render(self.scene(index), self.sprites, self.side)

    # The facts of each kind.

    def _single(self, rng):
        concept = self._draw(rng)
        return [self._large(rng, concept.noun, str(rng.choice(concept.icons)), None)], None

    def _colour(self, rng):
        concept = self._draw(rng, coloured=True)
        return [self._large(rng, concept.noun, concept.recolour, self._draw_colour(rng, concept))], None

    def _count(self, rng, tinted: bool = False):
        while True:
            concept, count = self._draw(rng, countable=True, tinted=tinted), int(rng.integers(2, 5))
            if not is_held_out_count(concept.noun, count):
                break
        if tinted:
            colour = self._draw_hue(rng, concept)
        else:
            colour = self._draw_colour(rng, concept) if concept.recolour and rng.random() < 0.3 else None
        icon = concept.any_hue if colour else str(rng.choice(concept.icons))
        return [Placed(concept.noun, icon, colour, x, y, SMALL) for x, y in COUNT_LAYOUTS[count]], None

    def _pair(self, rng, coloured: bool = False):
        while True:
            concepts = self._draw(rng, coloured), self._draw(rng, coloured)
            if concepts[0] is concepts[1] or is_held_out(concepts[0].noun, concepts[1].noun):
                continue
            colours = [
                self._draw_colour(rng, c) if c.recolour and (coloured or rng.random() < 0.35) else None
                for c in concepts
            ]
            both = tuple((c.noun, colour) for c, colour in zip(concepts, colours) if colour)
            if len(both) < 2 or not is_held_out_attribution(both):
                break
        relation = "above" if rng.random() < 0.25 else "left of"
        objects = []
        for concept, colour, (x, y) in zip(concepts, colours, PAIR_LAYOUTS[relation]):
            icon = concept.recolour if colour else str(rng.choice(concept.icons))
            objects.append(Placed(concept.noun, icon, colour, x, y, SMALL))
        return objects, relation

    def _attribution(self, rng):
        return self._pair(rng, coloured=True)

    def _tint(self, rng):
        concept = self._draw(rng, tinted=True)
        return [self._large(rng, concept.noun, concept.any_hue, self._draw_hue(rng, concept))], None

    def _tints(self, rng):
        return self._count(rng, tinted=True)

    def _group(self, rng):
        """Three or four things of two or more concepts, equal ones next to each other in reading order."""
        while True:
            places = COUNT_LAYOUTS[int(rng.integers(3, 5))]
            cuts = np.sort(rng.choice(np.arange(1, len(places)), int(rng.integers(1, len(places))), replace=False))
            counts = np.diff([0, *cuts, len(places)])
            concepts = [self._draw(rng, countable=count > 1) for count in counts]
            nouns = [c.noun for c in concepts]
            if len(set(nouns)) < len(nouns):
                continue
            if any(is_held_out(a, b) for a in nouns for b in nouns if a != b):
                continue
            if any(count > 1 and is_held_out_count(noun, int(count)) for noun, count in zip(nouns, counts)):
                continue
            hues = [self._draw_hue(rng, c) if c.any_hue and rng.random() < 0.4 else None for c in concepts]
            coloured = [(noun, hue) for noun, hue in zip(nouns, hues) if hue]
            if not any(is_held_out_attribution(both) for both in combinations(coloured, 2)):
                break
        which = np.repeat(np.arange(len(counts)), counts)
        objects = []
        for part, (x, y) in zip(which, places):
            concept, hue = concepts[part], hues[part]
            icon = concept.any_hue if hue else concept.icons[0]
            objects.append(Placed(concept.noun, icon, hue, x, y, SMALL))
        return objects, None

    def _draw(self, rng, coloured: bool = False, countable: bool = False, tinted: bool = False) -> Concept:
        fitting = [
            c for c in self.concepts
            if (c.recolour or not coloured) and (c.any_hue or not tinted) and not (countable and c.is_mass)
        ]  # fmt: skip
        return fitting[rng.integers(len(fitting))]

    def _draw_colour(self, rng, concept: Concept) -> str:
        return str(rng.choice([colour for colour in COLOURS if not is_held_out_colour(concept.noun, colour)]))

    def _draw_hue(self, rng, concept: Concept) -> str:
        return str(
            rng.choice([hue for hue in HUES if not (concept.recolour and is_held_out_colour(concept.noun, hue))])
        )

    def _large(self, rng, noun, icon, colour) -> Placed:
        # Two thirds stand in the middle; the rest one token off in any direction.
        x, y = (1, 1) if rng.random() < 0.67 else (int(i) for i in rng.integers(0, 3, 2))
        return Placed(noun, icon, colour, x, y, LARGE)

    # The words for each kind.

    def _say_single(self, say, scene: Scene) -> str:
        placed = scene.objects[0]
        concept = self._concept(placed)
        if placed.colour is None:
            label, tags = placed.icon.split(":")[1].replace("-", " "), self.tags[placed.icon]
            draw = say.random()
            if draw < 0.06 and tags:
                picked = [str(t) for t in say.permutation(tags)[:2]]
                return ", ".join([concept.noun, *picked])
            if draw < 0.10 and placed.icon.startswith("noto:"):
                return label
        words = self._name(say, placed)
        return self._frame(say, words if concept.is_mass else with_article(words), words)

    def _say_count(self, say, scene: Scene) -> str:
        count, placed = len(scene.objects), scene.objects[0]
        number = str(count) if say.random() < 0.15 else NUMBER_WORDS[count]
        plural = self._concept(placed).plural
        words = f"{number} {placed.colour} {plural}" if placed.colour else f"{number} {plural}"
        return self._frame(say, words, words)

    def _say_pair(self, say, scene: Scene) -> str:
        names = [(self._concept(placed), self._name(say, placed)) for placed in scene.objects]
        first, second = (name if concept.is_mass else with_article(name) for concept, name in names)
        if scene.relation == "above":
            choice = say.choice(["{0} above {1}", "{1} below {0}", "{0} on top of {1}", "{1} under {0}"])
        elif say.random() < 0.6:
            # "and" names the left one first, as a reader would.
            choice = say.choice(["{0} and {1}", "{0} and {1}", "{0} with {1}", "{0} next to {1}"])
        else:
            choice = say.choice(
                ["{0} left of {1}", "{0} to the left of {1}", "{1} right of {0}", "{1} to the right of {0}"]
            )
        caption = str(choice).format(first, second)
        if say.random() < 0.1:
            caption = str(say.choice(["a picture of ", "a photo of "])) + caption
        return caption

    def _say_group(self, say, scene: Scene) -> str:
        parts = []
        for placed, same in groupby(scene.objects, key=lambda p: replace(p, x=0, y=0)):
            concept, count = self._concept(placed), len(list(same))
            if count > 1:
                colour = f"{placed.colour} " if placed.colour else ""
                parts.append(f"{NUMBER_WORDS[count]} {colour}{concept.plural}")
            else:
                name = self._name(say, placed)
                parts.append(name if concept.is_mass else with_article(name))
        words = f"{', '.join(parts[:-1])} and {parts[-1]}"
        return self._frame(say, words, words)

    def _concept(self, placed: Placed) -> Concept:
        return next(c for c in self.concepts if c.noun == placed.noun)

    def _name(self, say, placed: Placed) -> str:
        """The noun or another word for it, with its colour."""
        concept = self._concept(placed)
        other = say.random() < 0.2
        name = str(say.choice(concept.synonyms)) if concept.synonyms and other else concept.noun
        return f"{placed.colour} {name}" if placed.colour else name

    def _frame(self, say, noun_phrase: str, bare: str) -> str:
        frames = ["{0}", "{1}", "a picture of {0}", "an image of {0}", "a photo of {0}", "a drawing of {0}", "{0}."]
        return frames[say.choice(len(frames), p=[0.52, 0.2, 0.08, 0.06, 0.06, 0.04, 0.04])].format(noun_phrase, bare)


def sheet(maker: SceneMaker, num_scenes: int, columns: int = 8):
    """A PIL picture of scenes with their captions beneath."""
    from PIL import Image, ImageDraw

    cell_width, cell_height = max(maker.side, 160) + 4, maker.side + 18
    rows = -(-num_scenes // columns)
    canvas = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    pen = ImageDraw.Draw(canvas)
    for i in range(num_scenes):
        x, y = i % columns * cell_width, i // columns * cell_height
        canvas.paste(Image.fromarray(maker.picture(i)), (x, y))
        pen.text((x + 2, y + maker.side + 2), maker.scene(i).caption[:30], fill="black")
    return canvas


def main() -> None:
    from .worlds import WORLDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=sorted(WORLDS), default="default")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", choices=list(KINDS), default="pretraining", help="what scenes show")
    parser.add_argument("--sheet", type=Path, help="picture to write, of 64 scenes")
    parser.add_argument("--prompts", type=Path, help="text to write, one caption a line, none twice")
    parser.add_argument("--num-prompts", type=int, default=4000)
    args = parser.parse_args()
    if not (args.sheet or args.prompts):
        parser.error("expected --sheet or --prompts")
    world = WORLDS[args.world]
    maker = SceneMaker(args.seed, world.image_side, args.cache_dir, world.concepts, KINDS[args.kinds])
    if args.sheet:
        sheet(maker, 64).save(args.sheet)
    if args.prompts:
        captions: dict[str, None] = {}
        for index in range(20 * args.num_prompts):
            captions[maker.scene(index).caption] = None
            if len(captions) == args.num_prompts:
                break
        args.prompts.write_text("".join(f"{caption}\n" for caption in captions))


if __name__ == "__main__":
    main()
