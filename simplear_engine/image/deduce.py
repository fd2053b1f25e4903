"""The configuration of a published tokenizer, read off its tensors' names and shapes.

Traced modules carry no configuration. Everything needed is in the shapes except the number of levels of each code
dimension, which a constant buffer holds, and the number of norm groups, which never differed.
"""

import math
import re

from simplear_engine.errors import CheckpointError
from simplear_engine.image.config import PUBLISHED_LEVELS, TokenizerConfig

_LEVEL = re.compile(r"(?:encoder\.down|decoder\.up)\.(\d{1,2})\.")
_BLOCK = re.compile(r"(?:encoder\.down|decoder\.up)\.0\.block\.(\d{1,2})\.")
_RESAMPLE = re.compile(r"(?:encoder\.down|decoder\.up)\.(\d{1,2})\.(?:down|up)sample\.")


def deduce_config(tensors: dict, where: str) -> TokenizerConfig:
    """`tensors`: name -> anything with .shape and .data, of either half or both."""
    video = any(".conv3d." in name for name in tensors)
    half = "encoder" if any(name.startswith("encoder.") for name in tensors) else "decoder"
    inner = ".0.conv3d" if video else ""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors or len(tensors[name].shape) < 2:
            raise CheckpointError(
                f"{where}: the configuration cannot be deduced: no tensor {name}; expected a Cosmos DV or DI tokenizer"
            )
        return tensors[name].shape

    of_half = [name for name in tensors if name.startswith(f"{half}.")]
    num_levels = 1 + max((int(m[1]) for name in of_half if (m := _LEVEL.match(name))), default=-1)
    blocks = 1 + max((int(m[1]) for name in of_half if (m := _BLOCK.match(name))), default=-1)
    resamplings = {m[1] for name in of_half if (m := _RESAMPLE.match(name))}
    levels_of = "encoder.down" if half == "encoder" else "decoder.up"
    widths = [shape(f"{levels_of}.{level}.block.0.conv1{inner}.weight")[0] for level in range(num_levels)]
    one = ".conv3d" if video else ""
    if half == "encoder":
        channels, patch_channels = shape(f"encoder.conv_in{inner}.weight")[:2]
        embedding_dim, z_channels = shape(f"quant_conv{one}.weight")[:2]
    else:
        channels, patch_channels = math.gcd(*widths), shape(f"decoder.conv_out{inner}.weight")[0]
        z_channels, embedding_dim = shape(f"post_quant_conv{one}.weight")[:2]
    patch_size = round((patch_channels / 3) ** (1 / 3 if video else 1 / 2))
    return TokenizerConfig.from_dict({
        "name": "DV" if video else "DI",
        "channels": channels,
        "channels_mult": [width // max(channels, 1) for width in widths],
        "num_res_blocks": blocks - (half == "decoder"),
        "patch_size": patch_size,
        "spatial_compression": patch_size << len(resamplings),
        "temporal_compression": patch_size * 2,
        "z_channels": z_channels,
        "embedding_dim": embedding_dim,
        "levels": _levels(tensors, embedding_dim, where),
    }, where)  # fmt: skip


def _levels(tensors: dict, embedding_dim: int, where: str) -> list[int]:
    for name in ("quantizer._levels", "inv_quant.quantizer._levels"):
        if name in tensors and tensors[name].dtype in ("int32", "int64") and len(tensors[name].shape) == 1:
            return [int(level) for level in tensors[name].data]
    if embedding_dim == len(PUBLISHED_LEVELS):
        return list(PUBLISHED_LEVELS)
    raise CheckpointError(f"{where}: the levels of its {embedding_dim} code dimensions are not in the file")
