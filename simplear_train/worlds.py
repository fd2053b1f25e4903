"""How large the world of emoji is, in numbers: the default model's, and a small one for smoke tests."""

from dataclasses import dataclass

from .concepts import CONCEPTS, Concept


@dataclass(frozen=True)
class World:
    num_concepts: int
    num_scenes: int  # tokenised once; seed and index name each one
    num_validation_scenes: int
    image_side: int = 128
    seed: int = 0

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """Every n-th concept, so that a small world still has animals, food, vehicles and things to recolour."""
        return CONCEPTS[:: len(CONCEPTS) // self.num_concepts][: self.num_concepts]


WORLDS = {
    "default": World(num_concepts=len(CONCEPTS), num_scenes=60_000, num_validation_scenes=1_000),
    "smoke": World(num_concepts=16, num_scenes=512, num_validation_scenes=64),
}
