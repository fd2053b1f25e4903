"""The image family (DI) against an independent network written with torch from the original's unfolded description."""

import numpy as np
import pytest

from simplear_engine.image import CosmosTokenizer, TokenizerConfig
from simplear_engine.image.random import random_tensor, shapes, write_random_tokenizer

torch = pytest.importorskip("torch")
F = torch.nn.functional

CONFIGS = {
    "like_the_default": {"channels": 32, "channels_mult": [2, 4, 4], "num_res_blocks": 2, "patch_size": 4,
                         "spatial_compression": 16, "z_channels": 24, "embedding_dim": 4, "levels": [8, 8, 8, 8]},
    "one_resampling_of_three_levels": {"channels": 32, "channels_mult": [1, 2, 2], "num_res_blocks": 1, "patch_size": 4,
                                       "spatial_compression": 8, "z_channels": 7, "embedding_dim": 2, "levels": [5, 4]},
    "odd_widths_and_eight_groups": {"channels": 40, "channels_mult": [1, 3], "num_res_blocks": 1, "patch_size": 2,
                                    "spatial_compression": 4, "z_channels": 5, "embedding_dim": 3, "levels": [3, 8, 5],
                                    "num_groups": 8},
    "no_patches": {"channels": 32, "channels_mult": [1, 1], "num_res_blocks": 1, "patch_size": 1,
                   "spatial_compression": 2, "z_channels": 4, "embedding_dim": 2, "levels": [7, 7]},
}  # fmt: skip


class TorchTokenizer:
    """Straight from the description: Haar bands by strided sums, nearest upsampling, one convolution at a time."""

    def __init__(self, config: TokenizerConfig, seed: int):
        self.config = config
        self.weights = {
            name: torch.from_numpy(random_tensor(name, shape, seed)) for name, shape in shapes(config).items()
        }

    def conv(self, x, name, **kwargs):
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], **kwargs)

    def norm(self, x, name):
        return F.group_norm(
            x, self.config.num_groups, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-6
        )

    def block(self, x, name):
        h = self.conv(F.silu(self.norm(x, f"{name}.norm1")), f"{name}.conv1", padding=1)
        h = self.conv(F.silu(self.norm(h, f"{name}.norm2")), f"{name}.conv2", padding=1)
        return h + (self.conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in self.weights else x)

    def middle(self, x, name):
        x = self.block(x, f"{name}.block_1")
        n = self.norm(x, f"{name}.attn_1.norm")
        q, k, v = (self.conv(n, f"{name}.attn_1.{part}").flatten(2).mT for part in "qkv")
        attended = F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape)
        x = x + self.conv(attended, f"{name}.attn_1.proj_out")
        return self.block(x, f"{name}.block_2")

    def encode_z(self, x):
        steps = int(np.log2(self.config.patch_size))
        for _ in range(steps):
            a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
            x = torch.cat([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], 1) / 4
        x = self.conv(x, "encoder.conv_in", padding=1)
        for level in range(len(self.config.channels_mult)):
            for block in range(self.config.num_res_blocks):
                x = self.block(x, f"encoder.down.{level}.block.{block}")
            if f"encoder.down.{level}.downsample.conv.weight" in self.weights:
                x = self.conv(F.pad(x, (0, 1, 0, 1)), f"encoder.down.{level}.downsample.conv", stride=2)
        x = F.silu(self.norm(self.middle(x, "encoder.mid"), "encoder.norm_out"))
        return self.conv(self.conv(x, "encoder.conv_out", padding=1), "quant_conv")

    def decode(self, indices):
        indices, codes = torch.from_numpy(indices), []
        for level in self.config.levels:
            codes.append((indices % level - level // 2) / (level // 2))
            indices = indices // level
        x = self.conv(self.conv(torch.stack(codes, 1).float(), "post_quant_conv"), "decoder.conv_in", padding=1)
        x = self.middle(x, "decoder.mid")
        for level in reversed(range(len(self.config.channels_mult))):
            for block in range(self.config.num_res_blocks + 1):
                x = self.block(x, f"decoder.up.{level}.block.{block}")
            if f"decoder.up.{level}.upsample.conv.weight" in self.weights:
                x = self.conv(F.interpolate(x, scale_factor=2), f"decoder.up.{level}.upsample.conv", padding=1)
        x = self.conv(F.silu(self.norm(x, "decoder.norm_out")), "decoder.conv_out", padding=1)
        while x.shape[1] > 3:
            low, high, wide, diagonal = x.chunk(4, 1)  # height before width, unlike the video family
            top = torch.stack([low + high + wide + diagonal, low + high - wide - diagonal], -1).flatten(-2)
            bottom = torch.stack([low - high + wide - diagonal, low - high - wide + diagonal], -1).flatten(-2)
            x = torch.stack([top, bottom], -2).flatten(-3, -2)
        return x


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_matches_the_unfolded_network(tmp_path, name, dtype):
    config = TokenizerConfig.from_dict({"name": "DI", **CONFIGS[name]}, name)
    tokenizer = CosmosTokenizer.from_pretrained(write_random_tokenizer(tmp_path, config, seed=11), dtype=dtype)
    reference = TorchTokenizer(config, seed=11)
    rng = np.random.default_rng(0)
    indices = rng.integers(0, config.num_codes, (2, 3, 5))
    with torch.inference_mode():
        expected = reference.decode(indices).numpy()
        image = tokenizer.decode(indices)
        error = np.abs(image - expected)
        assert image.shape == expected.shape
        if dtype == "float32":
            assert error.max() < 3e-5 * np.abs(expected).max()
        else:
            assert error.mean() < 0.015 * expected.std()

        pictures = rng.uniform(-1, 1, (2, 3, 6 * config.spatial_compression, 4 * config.spatial_compression))
        z = reference.encode_z(torch.from_numpy(pictures).float()).numpy()
    got = tokenizer.encode(pictures.astype(np.float32))
    certain = margin(z, config.levels) > (1e-3 if dtype == "float32" else 0.2)
    assert certain.mean() > (0.95 if dtype == "float32" else 0.05)
    np.testing.assert_array_equal(got[certain], indices_of(z, config.levels)[certain])


def bounded(z, level):
    half = (level - 1) * 1.001 / 2
    offset = 0 if level % 2 else 0.5
    return np.tanh(z + np.arctanh(offset / half)) * half - offset


def indices_of(z, levels):
    index, step = 0, 1
    for dimension, level in enumerate(levels):
        index = index + (np.rint(bounded(z[:, dimension], level)) + level // 2).astype(int) * step
        step *= level
    return index


def margin(z, levels):
    """Distance to the nearest rounding boundary: nearer ones may go either way."""
    distances = [
        np.abs(np.abs(b - np.rint(b)) - 0.5) for d, level in enumerate(levels) for b in [bounded(z[:, d], level)]
    ]
    return np.min(distances, 0)
