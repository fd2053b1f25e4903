"""Scenes to train the detector on: any place, any size, sometimes halves of two things, seen through bad glasses.

The models under test draw on a grid, from tokens. If the detector saw only clean scenes on that grid, it would learn
where to look and would not know a smeared cat from a cat. So its scenes are freer than those that models learn from,
and `blur_like_a_tokenizer` does to them roughly what a lossy tokenizer does: details vanish, patches of 16 pixels
take a wrong tint or lose their texture, edges ring. No picture here comes from a model.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..concepts import COLOURS, CONCEPTS
from ..emoji_scenes import BACKGROUNDS
from ..sprites import Sprites
from .detector import CELLS, COLOUR_NAMES, NOUNS, SIDE, STRIDE

SPRITE_SIDE = 128
UNKNOWN = -100  # a target that the loss leaves out


@dataclass
class Targets:
    """Of a batch, over [B, 16, 16] cells."""

    presence: np.ndarray  # float32, 1 at centres, less around them
    noun: np.ndarray  # int64, UNKNOWN where no centre is near
    colour: np.ndarray  # int64, UNKNOWN also where a thing's own colour has no clear name
    box: np.ndarray  # float32 [B, 4, 16, 16]


def named_colours(sprites: Sprites) -> dict[str, str]:
    """Noun -> name of its own colour, for the recolourable things whose own colour looks like one of COLOURS."""
    names = {}
    for concept in CONCEPTS:
        if concept.recolour:
            own = sprites[concept.recolour, None, SPRITE_SIDE].astype(int)
            opaque = own[..., 3] > 128
            change = {
                c: np.abs(sprites[concept.recolour, c, SPRITE_SIDE].astype(int) - own)[opaque].mean() for c in COLOURS
            }
            nearest = min(change, key=change.get)
            if change[nearest] < 6:
                names[concept.noun] = nearest
    return names


def are_apart(square: tuple[int, int, int], other: tuple[int, int, int], overlap: int) -> bool:
    """Two (left, top, side) that share at most a strip of `overlap` pixels."""
    (x, y, side), (a, b, other_side) = square, other
    strip_x = min(x + side, a + other_side) - max(x, a)
    strip_y = min(y + side, b + other_side) - max(y, b)
    return min(strip_x, strip_y) <= overlap


class FreeScenes:
    """Scene `index` of stream `seed` is a function of the two, as in emoji_scenes."""

    def __init__(self, seed: int, sprites: Sprites):
        self.seed = seed
        self.sprites = sprites
        self.own_colours = named_colours(sprites)

    def batch(self, first: int, size: int) -> tuple[np.ndarray, Targets]:
        """uint8 [size, 128, 128, 3] and what they show"""
        images = np.empty((size, SIDE, SIDE, 3), np.uint8)
        cells = (size, CELLS, CELLS)
        targets = Targets(
            np.zeros(cells, np.float32),
            np.full(cells, UNKNOWN),
            np.full(cells, UNKNOWN),
            np.zeros((size, 4, CELLS, CELLS), np.float32),
        )
        for i in range(size):
            self._draw(np.random.default_rng((self.seed, first + i)), images[i], targets, i)
        return images, targets

    def _draw(self, rng, image: np.ndarray, targets: Targets, i: int) -> None:
        tint = np.array(list(BACKGROUNDS.values())[rng.integers(len(BACKGROUNDS))]) + rng.integers(-12, 13, 3)
        image[:] = np.clip(tint, 0, 255)
        taken: list[tuple[int, int, int]] = []
        number = rng.choice([0, 1, 2, 3, 4, 5], p=[0.02, 0.3, 0.28, 0.14, 0.18, 0.08])
        same = rng.random() < 0.5  # of a kind, as in counts
        kind = self._kind(rng)
        for _ in range(number):
            largest = {1: 112, 2: 76}.get(int(number), 66)
            for _ in range(12):
                side = int(rng.integers(42, largest + 1)) if rng.random() < 0.4 else (96 if number == 1 else 64)
                if rng.random() < 0.5:  # on the grid that models draw on
                    x, y = (int(v) * 16 for v in rng.integers(0, (SIDE - side) // 16 + 1, 2))
                else:
                    x, y = (int(v) for v in rng.integers(-4, SIDE - side + 5, 2))
                overlap = 8 if rng.random() < 0.2 else 0
                if all(are_apart((x, y, side), other, overlap) for other in taken):
                    break
            else:
                continue
            taken.append((x, y, side))
            noun, icon, colour = kind if same else self._kind(rng)
            sprite = self._sprite(icon, colour, side)
            whole = rng.random() > 0.04
            if not whole:  # half of this and half of that is neither
                other = self._sprite(*self._kind(rng)[1:], side)
                sprite = sprite.copy()
                if rng.random() < 0.5:
                    sprite[:, side // 2 :] = other[:, side // 2 :]
                else:
                    sprite[side // 2 :] = other[side // 2 :]
            drawn = self._paste(image, sprite, x, y)
            if whole and drawn:
                self._mark(targets, i, noun, colour or self.own_colours.get(noun), drawn)

    def _kind(self, rng) -> tuple[str, str, str | None]:
        concept = CONCEPTS[rng.integers(len(CONCEPTS))]
        if rng.random() < 0.15:
            concept = [c for c in CONCEPTS if c.recolour][rng.integers(11)]
        colour = COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))] if concept.recolour and rng.random() < 0.75 else None
        return concept.noun, concept.recolour if colour else concept.icons[0], colour

    def _sprite(self, icon: str, colour: str | None, side: int) -> np.ndarray:
        from PIL import Image

        if side in (64, 96):
            return self.sprites[icon, colour, side]
        return np.asarray(
            Image.fromarray(self.sprites[icon, colour, SPRITE_SIDE]).resize((side, side), Image.Resampling.BOX)
        )

    def _paste(self, image: np.ndarray, sprite: np.ndarray, x: int, y: int) -> tuple | None:
        """Box of what became visible."""
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + len(sprite), SIDE), min(y + len(sprite), SIDE)
        part = sprite[top - y : bottom - y, left - x : right - x]
        alpha = part[..., 3:].astype(np.float32) / 255
        window = image[top:bottom, left:right]
        window[:] = (part[..., :3] * alpha + window * (1 - alpha) + 0.5).astype(np.uint8)
        rows, columns = (np.flatnonzero((part[..., 3] > 64).any(axis)) for axis in (1, 0))
        if not len(rows):
            return None
        return left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1

    def _mark(self, targets: Targets, i: int, noun: str, colour: str | None, box: tuple) -> None:
        x, y = (box[0] + box[2]) / 2 / STRIDE, (box[1] + box[3]) / 2 / STRIDE
        column, row = min(int(x), CELLS - 1), min(int(y), CELLS - 1)
        size = [np.log(max(box[k + 2] - box[k], 1) / STRIDE) for k in (0, 1)]
        for r in range(max(row - 2, 0), min(row + 3, CELLS)):
            for c in range(max(column - 2, 0), min(column + 3, CELLS)):
                near = float(np.exp(-((c + 0.5 - x) ** 2 + (r + 0.5 - y) ** 2) / 0.9))
                targets.presence[i, r, c] = max(targets.presence[i, r, c], 1.0 if (r, c) == (row, column) else near)
                if abs(r - row) <= 1 and abs(c - column) <= 1:
                    targets.noun[i, r, c] = NOUNS.index(noun)
                    targets.colour[i, r, c] = COLOUR_NAMES.index(colour) if colour else UNKNOWN
                    targets.box[i, :, r, c] = (x - c - 0.5, y - r - 0.5, *size)


def blur_like_a_tokenizer(images: Tensor, generator: torch.Generator) -> Tensor:
    """float [B, 3, 128, 128] in [-1, 1], of which a fifth stays as it is"""

    def uniform(*shape, low=0.0, high=1.0):
        return torch.rand(*shape, generator=generator) * (high - low) + low

    batch = len(images)
    small = int(uniform(1, low=32, high=112))
    soft = F.interpolate(images, (small, small), mode="bilinear", antialias=True, align_corners=False)
    soft = F.interpolate(soft, (SIDE, SIDE), mode="bicubic", align_corners=False)
    # Detail is kept patch by patch, so that sharp and soft patches stand side by side.
    detail = F.interpolate(uniform(batch, 1, 8, 8), (SIDE, SIDE), mode="nearest") * uniform(batch, 1, 1, 1)
    tint = F.interpolate(torch.randn(batch, 3, 8, 8, generator=generator), (SIDE, SIDE), mode="bilinear")
    texture = F.interpolate(torch.randn(batch, 3, 40, 40, generator=generator), (SIDE, SIDE), mode="bilinear")
    result = torch.lerp(soft, images, detail)
    result = result + tint * uniform(batch, 1, 1, 1, high=0.12) + texture * uniform(batch, 1, 1, 1, high=0.15)
    result = result * uniform(batch, 1, 1, 1, low=0.9, high=1.1)
    untouched = uniform(batch, 1, 1, 1) < 0.2
    return torch.where(untouched, images, result).clamp(-1, 1)
