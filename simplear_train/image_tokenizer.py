"""The picture tokenizer: a convolutional autoencoder around finite scalar quantisation (FSQ).

The network is NVIDIA Cosmos' discrete image tokenizer ("DI"), written from its description, with every size taken
from a config, and its state dict carries exactly the names of the published DI files, so one loader reads both.

    picture [B, 3, H, W] in [-1, 1]
      -> two Haar levels (48 channels at H/4) -> residual levels with strided convs between -> attention in the middle
      -> 1x1 to len(levels) channels -> FSQ: each channel rounded to one of `level` values -> code [B, H/16, W/16]
    and back.

Sources: NVIDIA Cosmos Tokenizer (design); Mentzer et al. 2023 (FSQ); van den Oord et al. 2017 (discrete autoencoders).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simplear_engine.dtypes import to_float32
from simplear_engine.errors import CheckpointError
from simplear_engine.safetensors_file import read_safetensors, write_safetensors


@dataclass(frozen=True)
class TokenizerConfig:
    channels: int = 128
    channels_mult: tuple[int, ...] = (2, 4, 4)
    num_res_blocks: int = 2
    num_groups: int = 32
    z_channels: int = 256
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    patch_size: int = 4
    spatial_compression: int = 16

    def metadata(self) -> dict:
        """The `config` entry of the safetensors metadata, in the published config's vocabulary."""
        return {
            "name": "DI", "in_channels": 3, "out_channels": 3, "patch_method": "haar", "patch_size": self.patch_size,
            "channels": self.channels, "channels_mult": list(self.channels_mult), "num_res_blocks": self.num_res_blocks,
            "num_groups": self.num_groups, "dropout": 0.0, "attn_resolutions": [32], "resolution": 1024,
            "z_channels": self.z_channels, "z_factor": 1, "quantizer": "FSQ", "embedding_dim": len(self.levels),
            "levels": list(self.levels), "spatial_compression": self.spatial_compression,
        }  # fmt: skip

    @classmethod
    def from_metadata(cls, entry: dict) -> "TokenizerConfig":
        names = cls.__dataclass_fields__
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items() if k in names})


def haar_split(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, 4C, H/2, W/2], bands LL, Hh, Wh, D (DI's order) outermost. Net gain 1/4 on each sum."""
    a, b, c, d = x[..., 0::2, 0::2], x[..., 0::2, 1::2], x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    return torch.cat([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], dim=1) / 4


def haar_merge(x: Tensor) -> Tensor:
    """The inverse of haar_split: plain signed sums."""
    low, high_h, high_w, diagonal = x.chunk(4, dim=1)
    batch, channels, height, width = low.shape
    out = x.new_empty(batch, channels, 2 * height, 2 * width)
    out[..., 0::2, 0::2] = low + high_h + high_w + diagonal
    out[..., 0::2, 1::2] = low + high_h - high_w - diagonal
    out[..., 1::2, 0::2] = low - high_h + high_w - diagonal
    out[..., 1::2, 1::2] = low - high_h - high_w + diagonal
    return out


class FSQ(nn.Module):
    """Round each channel to one of `levels[d]` values; the code is the mixed-radix number of the digits."""

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.levels = levels
        self.basis = [math.prod(levels[:d]) for d in range(len(levels))]

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    def _per_channel(self, values, like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=like.device).view(1, -1, 1, 1)

    def quantize(self, z: Tensor) -> Tensor:
        """z [B, D, h, w] -> the nearest code vector in [-1, 1], with the gradient of the unrounded value."""
        z = z.float()
        half_range = self._per_channel([(level - 1) * 1.001 / 2 for level in self.levels], z)
        offset = self._per_channel([0.5 if level % 2 == 0 else 0.0 for level in self.levels], z)
        shift = torch.atanh(offset / half_range)
        bounded = torch.tanh(z + shift) * half_range - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / self._per_channel([level // 2 for level in self.levels], z)

    def indices(self, codes: Tensor) -> Tensor:
        """code vectors [B, D, h, w] -> int32 [B, h, w]"""
        half = self._per_channel([level // 2 for level in self.levels], codes)
        digits = codes.float() * half + half
        return (digits * self._per_channel(self.basis, codes)).sum(dim=1).round().to(torch.int32)

    def codes(self, indices: Tensor) -> Tensor:
        """int [B, h, w] -> code vectors [B, D, h, w]"""
        digits = torch.stack([indices // b % level for b, level in zip(self.basis, self.levels)], dim=1)
        half = self._per_channel([level // 2 for level in self.levels], indices)
        return (digits - half) / half


def norm(channels: int, config: TokenizerConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.num_groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, config: TokenizerConfig):
        super().__init__()
        self.norm1 = norm(c_in, config)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = norm(c_out, config)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class Attention(nn.Module):
    """One head over all positions of the coarsest level."""

    def __init__(self, channels: int, config: TokenizerConfig):
        super().__init__()
        self.norm = norm(channels, config)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        n = self.norm(x)
        q, k, v = (conv(n).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))  # [B, hw, C]
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(out.transpose(1, 2).reshape(batch, channels, height, width))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def middle(channels: int, config: TokenizerConfig) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "block_1": ResBlock(channels, channels, config),
            "attn_1": Attention(channels, config),
            "block_2": ResBlock(channels, channels, config),
        }
    )


def run_level(level: nn.ModuleDict, x: Tensor) -> Tensor:
    for block in level["block"]:
        x = block(x)
    return x


class Encoder(nn.Module):
    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.num_patch_levels = int(math.log2(config.patch_size))
        num_downsamplings = int(math.log2(config.spatial_compression)) - self.num_patch_levels
        width = config.channels
        self.conv_in = nn.Conv2d(3 * config.patch_size**2, width, 3, padding=1)
        self.down = nn.ModuleList()
        for i, mult in enumerate(config.channels_mult):
            blocks = nn.ModuleList()
            for _ in range(config.num_res_blocks):
                blocks.append(ResBlock(width, config.channels * mult, config))
                width = config.channels * mult
            level = nn.ModuleDict({"block": blocks})
            if i < num_downsamplings:
                level["downsample"] = Downsample(width)
            self.down.append(level)
        self.mid = middle(width, config)
        self.norm_out = norm(width, config)
        self.conv_out = nn.Conv2d(width, config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.num_patch_levels):
            x = haar_split(x)
        x = self.conv_in(x)
        for level in self.down:
            x = run_level(level, x)
            if "downsample" in level:
                x = level["downsample"](x)
        for name in ("block_1", "attn_1", "block_2"):
            x = self.mid[name](x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Levels are numbered as in the encoder and run from the last to the first."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.num_patch_levels = int(math.log2(config.patch_size))
        num_upsamplings = int(math.log2(config.spatial_compression)) - self.num_patch_levels
        width = config.channels * config.channels_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.mid = middle(width, config)
        levels = []
        for i, mult in reversed(list(enumerate(config.channels_mult))):
            blocks = nn.ModuleList()
            for _ in range(config.num_res_blocks + 1):
                blocks.append(ResBlock(width, config.channels * mult, config))
                width = config.channels * mult
            level = nn.ModuleDict({"block": blocks})
            # The coarsest levels are upsampled; the finest one ends at the patch grid.
            if i >= len(config.channels_mult) - num_upsamplings:
                level["upsample"] = Upsample(width)
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out = norm(width, config)
        self.conv_out = nn.Conv2d(width, 3 * config.patch_size**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        for name in ("block_1", "attn_1", "block_2"):
            x = self.mid[name](x)
        for level in reversed(self.up):
            x = run_level(level, x)
            if "upsample" in level:
                x = level["upsample"](x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        for _ in range(self.num_patch_levels):
            x = haar_merge(x)
        return x


class ImageTokenizer(nn.Module):
    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, len(config.levels), 1)
        self.post_quant_conv = nn.Conv2d(len(config.levels), config.z_channels, 1)
        self.decoder = Decoder(config)
        self.fsq = FSQ(config.levels)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruction, differentiable through the rounding."""
        codes = self.fsq.quantize(self.quant_conv(self.encoder(images)))
        return self.decoder(self.post_quant_conv(codes))

    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> int32 [B, h, w]"""
        return self.fsq.indices(self.fsq.quantize(self.quant_conv(self.encoder(images))))

    def decode(self, indices: Tensor) -> Tensor:
        """int [B, h, w] -> [B, 3, H, W], nominally in [-1, 1], not clamped"""
        codes = self.fsq.codes(indices).to(self.post_quant_conv.weight.dtype)
        return self.decoder(self.post_quant_conv(codes))


def save_image_tokenizer(tokenizer: ImageTokenizer, path: Path, dtype: torch.dtype) -> None:
    """float32 or float16. The same tokenizer is the same bytes, because sets of tokens know theirs by its file's SHA-256:
    the engine's writer keeps the order of metadata, that of safetensors does not, and a file that says the same stays."""
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in tokenizer.state_dict().items()}
    metadata = {"format": "pt", "config": json.dumps(tokenizer.config.metadata())}
    if not _holds(path, tensors, metadata):
        write_safetensors(path, {name: value.numpy() for name, value in tensors.items()}, metadata)


def _holds(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> bool:
    try:
        stored, found = read_safetensors(path)
    except CheckpointError:  # there is none, or half of one
        return False
    if found != metadata or stored.keys() != tensors.keys():
        return False
    arrays = {name: (stored[name].data, value.numpy()) for name, value in tensors.items()}
    return all(old.dtype == new.dtype and np.array_equal(old, new) for old, new in arrays.values())


def load_image_tokenizer(path: Path) -> ImageTokenizer:
    tensors, metadata = read_safetensors(path)
    if "config" not in metadata:
        raise CheckpointError(f"{path}: expected a picture tokenizer with its config in the metadata, found none")
    tokenizer = ImageTokenizer(TokenizerConfig.from_metadata(json.loads(metadata["config"])))
    tokenizer.load_state_dict({
        name: torch.from_numpy(to_float32(stored.data, stored.dtype).copy()) for name, stored in tensors.items()
    })  # fmt: skip
    return tokenizer.eval()
