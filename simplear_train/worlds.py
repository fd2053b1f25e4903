"""How large the world of emoji is, in numbers: the default model's, one for experiments of some minutes, and one for
smoke tests."""

from dataclasses import dataclass

from .concepts import CONCEPTS, Concept


@dataclass(frozen=True)
class World:
    num_concepts: int  # at least; those to recolour come on top where all_colours is set
    num_scenes: int  # tokenised once; seed and index name each one
    num_validation_scenes: int
    image_side: int = 128
    seed: int = 0
    all_colours: bool = False  # whether everything that may be recoloured is there

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """Every n-th concept, so that a small world still has animals, food, vehicles and things to recolour."""
        chosen = CONCEPTS[:: len(CONCEPTS) // self.num_concepts][: self.num_concepts]
        return tuple(c for c in CONCEPTS if c in chosen or (self.all_colours and c.recolour))


WORLDS = {
    "default": World(num_concepts=len(CONCEPTS), num_scenes=60_000, num_validation_scenes=1_000),
    "small": World(num_concepts=18, num_scenes=16_000, num_validation_scenes=500, all_colours=True),
    "smoke": World(num_concepts=16, num_scenes=512, num_validation_scenes=64),
}
