"""What a tokenizer file must hold: every tensor's name and shape, for either half.

Names are those of the published files. The video family wraps each convolution (`.conv3d`) and norm (`.norm`) and
splits a convolution in two; the image family does neither. Some names may be absent or present without meaning:
the unused temporal convolutions, and the constant buffers that traced files carry along.
"""

import re

from simplear_engine.image import stages
from simplear_engine.image.config import TokenizerConfig

Shapes = dict[str, tuple[int, ...]]

# Constants of the traced modules; what they hold follows from the configuration.
_BUFFER = re.compile(
    r"(encoder\.patcher|decoder\.unpatcher)(3d)?\.(wavelets|_arange|patch_size_buffer)"
    r"|(inv_quant\.)?quantizer\.(_levels|_basis|implicit_codebook)"
)


def is_buffer(name: str) -> bool:
    return _BUFFER.fullmatch(name) is not None


def encoder_shapes(config: TokenizerConfig) -> tuple[Shapes, Shapes]:
    """(required, optional) shapes of the encoder half, quant_conv included."""
    return _shapes(config, stages.encoder_stages(config))


def decoder_shapes(config: TokenizerConfig) -> tuple[Shapes, Shapes]:
    """(required, optional) shapes of the decoder half, post_quant_conv included."""
    return _shapes(config, stages.decoder_stages(config))


def is_decoder_name(name: str) -> bool:
    return name.startswith(("decoder.", "post_quant_conv.", "inv_quant."))


def _shapes(config: TokenizerConfig, stage_list: list) -> tuple[Shapes, Shapes]:
    writer = (_VideoNames if config.is_video else _ImageNames)()
    for stage in stage_list:
        match stage:
            case stages.PointwiseIn() | stages.PointwiseOut():
                writer.conv(stage.prefix, stage.in_channels, stage.out_channels, 1)
            case stages.ConvIn():
                writer.conv3x3(stage.prefix, stage.in_channels, stage.out_channels)
            case stages.ResBlock(prefix, inside, out):
                writer.norm(f"{prefix}.norm1", inside)
                writer.conv3x3(f"{prefix}.conv1", inside, out)
                writer.norm(f"{prefix}.norm2", out)
                writer.conv3x3(f"{prefix}.conv2", out, out)
                if inside != out:
                    writer.conv(f"{prefix}.nin_shortcut", inside, out, 1)
            case stages.Attention():
                writer.attention(stage.prefix, stage.channels)
            case stages.Downsample():
                writer.resample(stage, spatial="conv1", temporal="conv2")
            case stages.Upsample():
                writer.resample(stage, spatial="conv2", temporal="conv1")
            case stages.ConvOut(prefix, inside, out):
                writer.norm(f"{prefix}.norm_out", inside)
                writer.conv3x3(f"{prefix}.conv_out", inside, out)
    return writer.required, writer.optional


class _ImageNames:
    def __init__(self):
        self.required: Shapes = {}
        self.optional: Shapes = {}

    def tensor(self, name: str, *shape: int) -> None:
        self.required[f"{name}.weight"] = shape
        self.required[f"{name}.bias"] = shape[:1]

    def norm(self, prefix: str, channels: int) -> None:
        self.tensor(prefix, channels)

    def conv(self, prefix: str, inside: int, out: int, size: int) -> None:
        self.tensor(prefix, out, inside, size, size)

    def conv3x3(self, prefix: str, inside: int, out: int) -> None:
        self.conv(prefix, inside, out, 3)

    def attention(self, prefix: str, channels: int) -> None:
        self.norm(f"{prefix}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            self.conv(f"{prefix}.{part}", channels, channels, 1)

    def resample(self, stage, spatial: str, temporal: str) -> None:
        self.conv(f"{stage.prefix}.conv", stage.channels, stage.channels, 3)


class _VideoNames(_ImageNames):
    def norm(self, prefix: str, channels: int) -> None:
        self.tensor(f"{prefix}.norm", channels)

    def conv(self, prefix: str, inside: int, out: int, size: int) -> None:
        self.tensor(f"{prefix}.conv3d", out, inside, 1, size, size)

    def temporal(self, prefix: str, channels: int) -> None:
        self.tensor(f"{prefix}.conv3d", channels, channels, 3, 1, 1)

    def conv3x3(self, prefix: str, inside: int, out: int) -> None:
        self.conv(f"{prefix}.0", inside, out, 3)
        self.temporal(f"{prefix}.1", out)

    def attention(self, prefix: str, channels: int) -> None:
        super().attention(f"{prefix}.0", channels)
        super().attention(f"{prefix}.1", channels)

    def resample(self, stage, spatial: str, temporal: str) -> None:
        self.conv(f"{stage.prefix}.{spatial}", stage.channels, stage.channels, 3)
        self.conv(f"{stage.prefix}.conv3", stage.channels, stage.channels, 1)
        used = self.required
        if not stage.temporal:
            self.required = self.optional  # built but never used by the original: files differ in whether they keep it
        self.temporal(f"{stage.prefix}.{temporal}", stage.channels)
        self.required = used
