"""Pictures of emoji with captions that are true by construction.

    python -m simplear_train.emoji_scenes --preset default --sheet scenes.png      look at 64 scenes and their captions

Scene number `index` of a stream `seed` is a pure function of the two, so nothing is stored: every stage renders what
it needs (about 2,000 scenes/s on one core). A scene is its facts, the picture is drawn from the facts, and so is
the caption; whoever scores pictures later compares with the facts, not with words.

The distribution is narrow on purpose, so that a model of a few million parameters can learn it in an hour on a CPU:
sprites exist at two sizes, stand on a grid of eighths (one visual token each), and backgrounds are plain.
A tenth of the ordered pairs of concepts ("a cat and a dog") is held out, to see later whether pairs compose.
"""

import argparse
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .concepts import COLOURS, CONCEPTS, Concept
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
    kind: str  # single, colour, count or pair
    background: str
    objects: tuple[Placed, ...]
    relation: str | None  # of objects[0] to objects[1], for pairs: "left of" or "above"
    caption: str


def with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" and not words.startswith("u") else "a ") + words


def is_held_out(first: str, second: str) -> bool:
    return zlib.crc32(f"{first}|{second}".encode()) % 10 == 0


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
    """Draws scenes. `concepts` shrinks the world for the smoke preset and for tests."""

    def __init__(self, seed: int, side: int, cache_dir: Path = DEFAULT_CACHE, concepts: tuple[Concept, ...] = CONCEPTS):
        self.seed = seed
        self.side = side
        self.concepts = concepts
        self.sprites = load_sprites((LARGE * side // 8, SMALL * side // 8), cache_dir, concepts)
        words = emoji_words(cache_dir)
        self.tags = {icon: words.get(icon.split(":")[1], ()) for c in concepts for icon in c.icons}

    def scene(self, index: int, wording: int = 0, kind: str | None = None) -> Scene:
        """Scene `index`, described in words number `wording`: same facts, same picture, another caption."""
        rng = np.random.default_rng((self.seed, index))
        say = np.random.default_rng((self.seed, index, 1 + wording))
        kind = kind or str(rng.choice(["single", "colour", "count", "pair"], p=[0.46, 0.14, 0.15, 0.25]))
        background = str(rng.choice(list(BACKGROUNDS)))
        build = {"single": self._single, "colour": self._colour, "count": self._count, "pair": self._pair}[kind]
        objects, relation, caption = build(rng, say)
        if say.random() < 0.10:
            shade = say.choice(["", "light "]) if background != "white" else ""
            caption += f" on a {shade}{background} background"
        if say.random() < 0.1:
            caption = caption[0].upper() + caption[1:]
        return Scene(kind, background, tuple(objects), relation, caption)

    def picture(self, index: int) -> np.ndarray:
        return render(self.scene(index), self.sprites, self.side)

    # One method per kind: facts first, then words that follow from them.

    def _single(self, rng, say):
        concept = self._draw(rng)
        icon = str(rng.choice(concept.icons))
        return [self._large(rng, concept.noun, icon, None)], None, self._single_caption(say, concept, icon)

    def _colour(self, rng, say):
        concept = self._draw(rng, coloured=True)
        colour = str(rng.choice(list(COLOURS)))
        words = f"{colour} {self._name(say, concept)}"
        noun_phrase = words if concept.is_mass else with_article(words)
        return [self._large(rng, concept.noun, concept.recolour, colour)], None, self._frame(say, noun_phrase, words)

    def _count(self, rng, say):
        concept = self._draw(rng, countable=True)
        count = int(rng.integers(2, 5))
        colour = str(rng.choice(list(COLOURS))) if concept.recolour and rng.random() < 0.3 else None
        icon = concept.recolour if colour else str(rng.choice(concept.icons))
        layout = COUNT_LAYOUTS[count]
        objects = [Placed(concept.noun, icon, colour, x, y, SMALL) for x, y in layout]
        number = str(count) if say.random() < 0.15 else NUMBER_WORDS[count]
        plural = f"{colour} {concept.plural}" if colour else concept.plural
        return objects, None, self._frame(say, f"{number} {plural}", f"{number} {plural}")

    def _pair(self, rng, say):
        while True:
            concepts = self._draw(rng), self._draw(rng)
            if concepts[0] is not concepts[1] and not is_held_out(concepts[0].noun, concepts[1].noun):
                break
        vertical = rng.random() < 0.25
        places = ((2, 0), (2, 4)) if vertical else ((0, 2), (4, 2))
        objects, phrases = [], []
        for concept, (x, y) in zip(concepts, places):
            colour = str(rng.choice(list(COLOURS))) if concept.recolour and rng.random() < 0.35 else None
            icon = concept.recolour if colour else str(rng.choice(concept.icons))
            words = f"{colour} {self._name(say, concept)}" if colour else self._name(say, concept)
            objects.append(Placed(concept.noun, icon, colour, x, y, SMALL))
            phrases.append(words if concept.is_mass else with_article(words))
        first, second = phrases
        if vertical:
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
            caption = "a picture of " + caption
        return objects, "above" if vertical else "left of", caption

    def _draw(self, rng, coloured: bool = False, countable: bool = False) -> Concept:
        fitting = [c for c in self.concepts if (c.recolour or not coloured) and not (countable and c.is_mass)]
        return fitting[rng.integers(len(fitting))]

    def _large(self, rng, noun, icon, colour) -> Placed:
        # Two thirds stand in the middle; the rest one token off in any direction.
        x, y = (1, 1) if rng.random() < 0.67 else (int(i) for i in rng.integers(0, 3, 2))
        return Placed(noun, icon, colour, x, y, LARGE)

    def _name(self, say, concept: Concept) -> str:
        if concept.synonyms and say.random() < 0.2:
            return str(say.choice(concept.synonyms))
        return concept.noun

    def _single_caption(self, say, concept: Concept, icon: str) -> str:
        label, tags = icon.split(":")[1].replace("-", " "), self.tags[icon]
        draw = say.random()
        if draw < 0.06 and tags:
            picked = [str(t) for t in say.permutation(tags)[:2]]
            return ", ".join([concept.noun, *picked])
        if draw < 0.10 and icon.startswith("noto:"):
            return label
        words = self._name(say, concept)
        return self._frame(say, words if concept.is_mass else with_article(words), words)

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
    from .presets import PRESETS, concepts_of

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, required=True)
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    sheet(SceneMaker(args.seed, preset.tokenizer.image_side, args.cache_dir, concepts_of(preset)), 64).save(args.sheet)


if __name__ == "__main__":
    main()
