"""Every number of a training run, in one place.

`default` is the model in simplear_engine/default_model (two CPU cores, about two hours in all); `smoke` runs every
stage in under three minutes and only shows that losses fall. A larger run is one more entry here: the stages read
nothing else, and `--device cuda` is all that a GPU needs.
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
class ModelPreset:
    """The language model, a Qwen2 config."""

    hidden_size: int = 256
    intermediate_size: int = 448
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 1024


@dataclass(frozen=True)
class PretrainPreset:
    num_scenes: int = 48_000  # tokenised once; seed and index name each one
    num_validation_scenes: int = 1_000
    text_vocab_size: int = 752
    batch_size: int = 32
    steps: int = 9700
    warmup_steps: int = 200
    learning_rate: float = 2e-3
    min_learning_rate: float = 5e-5
    weight_decay: float = 0.05
    drop_condition: float = 0.1  # share of samples reduced to the bare form, for guidance
    text_loss_weight: float = 0.05  # captions help a little as a side task, and cost no extra pass
    ema_decay: float = 0.999


@dataclass(frozen=True)
class Preset:
    name: str
    num_concepts: int
    tokenizer: TokenizerPreset
    model: ModelPreset
    pretrain: PretrainPreset
    seed: int = 0


def concepts_of(preset: Preset) -> tuple[Concept, ...]:
    """Every n-th concept, so that a small world still has animals, food, vehicles and things to recolour."""
    return CONCEPTS[:: len(CONCEPTS) // preset.num_concepts][: preset.num_concepts]


PRESETS = {
    "default": Preset("default", len(CONCEPTS), TokenizerPreset(), ModelPreset(), PretrainPreset()),
    "smoke": Preset(
        "smoke",
        16,
        TokenizerPreset(
            channels=16, z_channels=16, batch_size=16, steps=60, warmup_steps=10, refine_steps=20, ema_decay=0.9
        ),
        ModelPreset(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
        ),
        PretrainPreset(
            num_scenes=512,
            num_validation_scenes=64,
            text_vocab_size=320,
            batch_size=32,
            steps=150,
            warmup_steps=10,
            ema_decay=0.95,
        ),
    ),
}
