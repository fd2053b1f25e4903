"""Which scene does a picture look most like? A judge without training, for choosing guidance and watching a run.

    python -m simplear_train.nearest_scene --model simplear_engine/default_model --guidance-scale 1.7 --top-k 8

Every concept is asked for alone ("a cat"), the picture is shrunk to 32 x 32 and compared with every concept at every place
on every background; it passes when the nearest render shows the concept asked for. Pairs and counts are judged the
same way, the candidates being all concepts at those places. This is a nearest-neighbour rule on our own sprites: good for
comparing settings of one model, no measure of beauty and not comparable with any published score.
"""

import argparse
from pathlib import Path

import numpy as np

from .concepts import CONCEPTS
from .emoji_scenes import BACKGROUNDS, COUNT_LAYOUTS, LARGE, NUMBER_WORDS, SMALL, Placed, Scene, render, with_article
from .sprites import DEFAULT_CACHE, load_sprites

THUMBNAIL = 32


def thumbnail(image: np.ndarray) -> np.ndarray:
    block = image.shape[0] // THUMBNAIL
    return image.reshape(THUMBNAIL, block, THUMBNAIL, block, 3).mean((1, 3), dtype=np.float32).ravel()


class NearestScene:
    def __init__(self, side: int, cache_dir: Path = DEFAULT_CACHE):
        sprites = load_sprites((LARGE * side // 8, SMALL * side // 8), cache_dir)
        self.nouns = [c.noun for c in CONCEPTS]
        self.large, self.cells = [], {}
        layouts = {(x, y) for layout in COUNT_LAYOUTS.values() for x, y in layout} | {(2, 0), (2, 4)}
        for concept in CONCEPTS:
            icon = concept.icons[0]
            for background in BACKGROUNDS:
                for x in range(3):
                    for y in range(3):
                        placed = Placed(concept.noun, icon, None, x, y, LARGE)
                        scene = Scene("single", background, (placed,), None, "")
                        self.large.append((concept.noun, thumbnail(render(scene, sprites, side))))
                for x, y in layouts:
                    placed = Placed(concept.noun, icon, None, x, y, SMALL)
                    scene = Scene("cell", background, (placed,), None, "")
                    self.cells.setdefault((x, y), []).append(
                        (concept.noun, self._cell(render(scene, sprites, side), x, y))
                    )

    def _cell(self, image: np.ndarray, x: int, y: int) -> np.ndarray:
        unit = image.shape[0] // 8
        return thumbnail(image[y * unit : (y + SMALL) * unit, x * unit : (x + SMALL) * unit])

    def _nearest(self, candidates, value: np.ndarray) -> str:
        table = np.stack([v for _, v in candidates])
        return candidates[int(((table - value) ** 2).sum(1).argmin())][0]

    def single(self, image: np.ndarray) -> str:
        return self._nearest(self.large, thumbnail(image))

    def cell(self, image: np.ndarray, x: int, y: int) -> str:
        return self._nearest(self.cells[x, y], self._cell(image, x, y))

    def shows(self, kind: str, image: np.ndarray, seen: tuple) -> bool:
        """Whether `image` passes as one of `requests()`."""
        if kind == "single":
            return self.single(image) == seen[0]
        return all(self.cell(image, x, y) == noun for noun, x, y in seen)


def requests() -> list[tuple[str, str, tuple]]:
    """(kind, prompt, what must be seen where)"""
    rng = np.random.default_rng(0)
    result = [("single", c.noun if c.is_mass else with_article(c.noun), (c.noun,)) for c in CONCEPTS]
    countable = [c for c in CONCEPTS if not c.is_mass]
    for i, concept in enumerate(countable[::2]):
        number = 2 + i % 3
        seen = tuple((concept.noun, x, y) for x, y in COUNT_LAYOUTS[number])
        result.append(("count", f"{NUMBER_WORDS[number]} {concept.plural}", seen))
    for _ in range(45):
        first, second = (countable[i] for i in rng.choice(len(countable), 2, replace=False))
        seen = ((first.noun, 0, 2), (second.noun, 4, 2))
        result.append(("pair", f"{with_article(first.noun)} left of {with_article(second.noun)}", seen))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--guidance-scale", type=float, nargs="+", default=[None], help="one or several to compare")
    parser.add_argument("--top-k", type=int, nargs="+", default=[None])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    args = parser.parse_args()
    from simplear_engine import Engine

    engine = Engine.from_pretrained(str(args.model))
    asked, judge = requests(), None
    for scale in args.guidance_scale:
        for top_k in args.top_k:
            images = [
                np.asarray(engine.generate(prompt, seed=args.seed + i, guidance_scale=scale, top_k=top_k)[0].pil)
                for i, (_, prompt, _) in enumerate(asked)
            ]
            judge = judge or NearestScene(images[0].shape[0], args.cache_dir)
            passed: dict[str, list[bool]] = {}
            for (kind, _, seen), image in zip(asked, images):
                passed.setdefault(kind, []).append(judge.shows(kind, image, seen))
            shares = "  ".join(f"{kind} {np.mean(v):.2f} ({len(v)})" for kind, v in passed.items())
            print(f"guidance {scale}  top_k {top_k}  {shares}", flush=True)


if __name__ == "__main__":
    main()
