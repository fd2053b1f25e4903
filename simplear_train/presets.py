"""The world of emoji and its picture tokenizer, in numbers; the language model's are in configs/.

`default` is the model in simplear_engine/default_model (two CPU cores, about two hours in all); `smoke` is a small world
that only shows that losses fall.
"""

from dataclasses import dataclass

from .concepts import CONCEPTS, Concept


@dataclass(frozen=True)
class TokenizerPreset:
    """The picture tokenizer: NVIDIA Cosmos' DI design with other numbers."""

    image_side: int = 128
    channels: int = 48
    channels_mult: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 1  # per encoder level; the decoder has one more
    num_groups: int = 8
    z_channels: int = 64
    levels: tuple[int, ...] = (4, 4, 4, 4, 4, 4)  # 4,096 codes
    patch_size: int = 4
    spatial_compression: int = 16
    batch_size: int = 16
    steps: int = 5600
    warmup_steps: int = 100
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    refine_steps: int = 3000  # of the decoder alone, after the tokens are extracted
    refine_learning_rate: float = 8e-4
    ema_decay: float = 0.998
    gradient_loss_weight: float = 0.5
    object_weight: float = 4.0  # a pixel that differs from the background counts this much


@dataclass(frozen=True)
class PretrainPreset:
    num_scenes: int = 48_000  # tokenised once; seed and index name each one
    num_validation_scenes: int = 1_000
    text_vocab_size: int = 752


@dataclass(frozen=True)
class Preset:
    name: str
    num_concepts: int
    tokenizer: TokenizerPreset
    pretrain: PretrainPreset
    seed: int = 0


def concepts_of(preset: Preset) -> tuple[Concept, ...]:
    """Every n-th concept, so that a small world still has animals, food, vehicles and things to recolour."""
    return CONCEPTS[:: len(CONCEPTS) // preset.num_concepts][: preset.num_concepts]


PRESETS = {
    "default": Preset("default", len(CONCEPTS), TokenizerPreset(), PretrainPreset()),
    "smoke": Preset(
        "smoke",
        16,
        TokenizerPreset(
            channels=16, z_channels=16, batch_size=16, steps=60, warmup_steps=10, refine_steps=20, ema_decay=0.9
        ),
        PretrainPreset(num_scenes=512, num_validation_scenes=64, text_vocab_size=320),
    ),
}
