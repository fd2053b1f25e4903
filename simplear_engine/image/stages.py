"""The network as a list of stages, in the order they run.

Tensor names, shapes, folding and execution all walk this one list, so they cannot disagree about which level has
which layers. A stage knows its name prefix and channels; it knows nothing about weights.
"""

from dataclasses import dataclass

from simplear_engine.image.config import TokenizerConfig


@dataclass(frozen=True)
class PointwiseIn:  # post_quant_conv: 1x1, alone
    prefix: str
    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class ConvIn:
    prefix: str
    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class ResBlock:
    prefix: str
    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class Attention:
    prefix: str
    channels: int


@dataclass(frozen=True)
class Downsample:
    prefix: str
    channels: int
    temporal: bool  # DV: this level also halves time, which for one frame leaves a 1x1 convolution


@dataclass(frozen=True)
class Upsample:
    prefix: str
    channels: int
    temporal: bool


@dataclass(frozen=True)
class ConvOut:  # norm, SiLU, convolution
    prefix: str  # of the half: "encoder" or "decoder"
    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class PointwiseOut:  # quant_conv: folds into the ConvOut before it
    prefix: str
    in_channels: int
    out_channels: int


def encoder_stages(config: TokenizerConfig) -> list:
    channels = config.channels
    stages = [ConvIn("encoder.conv_in", config.patch_channels, channels)]
    for level, width in enumerate(config.level_channels):
        prefix = f"encoder.down.{level}"
        for block in range(config.num_res_blocks):
            stages.append(ResBlock(f"{prefix}.block.{block}", channels, width))
            channels = width
        if level < config.num_spatial_steps:
            stages.append(Downsample(f"{prefix}.downsample", width, level < config.num_temporal_steps))
    stages += _middle("encoder.mid", channels)
    stages.append(ConvOut("encoder", channels, config.z_channels))
    stages.append(PointwiseOut("quant_conv", config.z_channels, config.embedding_dim))
    return stages


def decoder_stages(config: TokenizerConfig) -> list:
    channels = config.level_channels[-1]
    stages = [PointwiseIn("post_quant_conv", config.embedding_dim, config.z_channels)]
    stages.append(ConvIn("decoder.conv_in", config.z_channels, channels))
    stages += _middle("decoder.mid", channels)
    for level in reversed(range(len(config.level_channels))):  # levels are numbered as in the encoder, run backwards
        width = config.level_channels[level]
        for block in range(config.num_res_blocks + 1):
            stages.append(ResBlock(f"decoder.up.{level}.block.{block}", channels, width))
            channels = width
        steps_done = len(config.level_channels) - 1 - level
        if steps_done < config.num_spatial_steps:
            # The first upsampling leaves time alone; the temporal ones follow it.
            temporal = 0 < steps_done <= config.num_temporal_steps
            stages.append(Upsample(f"decoder.up.{level}.upsample", width, temporal))
    stages.append(ConvOut("decoder", channels, config.patch_channels))
    return stages


def _middle(prefix: str, channels: int) -> list:
    return [
        ResBlock(f"{prefix}.block_1", channels, channels),
        Attention(f"{prefix}.attn_1", channels),
        ResBlock(f"{prefix}.block_2", channels, channels),
    ]
