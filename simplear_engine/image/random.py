"""Tokenizers with random weights, for tests and benchmarks: the right names and shapes, nothing learned."""

import json
import math
import zlib
from pathlib import Path

import numpy as np

from simplear_engine import dtypes
from simplear_engine.image import layout
from simplear_engine.image.config import TokenizerConfig
from simplear_engine.image.source import FILE_NAME
from simplear_engine.safetensors_file import StreamedTensor, write_safetensors

_PUBLISHED = {
    "channels": 128,
    "channels_mult": [2, 4, 4],
    "num_res_blocks": 2,
    "patch_size": 4,
    "spatial_compression": 16,
    "embedding_dim": 6,
    "levels": [8, 8, 8, 5, 5, 5],
}
DV8X16X16 = TokenizerConfig.from_dict({"name": "DV", "z_channels": 16, **_PUBLISHED}, "DV8x16x16")
DI16X16 = TokenizerConfig.from_dict({"name": "DI", "z_channels": 256, **_PUBLISHED}, "DI16x16")


def write_random_tokenizer(
    path,
    config: TokenizerConfig | dict = DV8X16X16,
    seed: int = 0,
    dtype: str = "float32",
    parts: tuple[str, ...] = ("encoder", "decoder"),
) -> Path:
    """Writes a tokenizer to the file `path` (*.safetensors) or into the folder `path`; returns the file's path.

    A tensor's numbers depend on its name and `seed` only, so the same network comes out in any dtype, whole or in half.
    """
    if isinstance(config, dict):
        config = TokenizerConfig.from_dict(config, "config")
    path = Path(path)
    if path.suffix != ".safetensors":
        path.mkdir(parents=True, exist_ok=True)
        path = path / FILE_NAME
    tensors = {
        name: StreamedTensor(
            dtype, shape, lambda name=name, shape=shape: [dtypes.from_float32(random_tensor(name, shape, seed), dtype)]
        )
        for name, shape in shapes(config, parts).items()
    }
    write_safetensors(path, tensors, {"config": json.dumps(config.to_dict())})
    return path


def shapes(config: TokenizerConfig, parts: tuple[str, ...] = ("encoder", "decoder")) -> dict[str, tuple[int, ...]]:
    halves = {"encoder": layout.encoder_shapes, "decoder": layout.decoder_shapes}
    return {name: shape for part in parts for name, shape in halves[part](config)[0].items()}


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Convolutions N(0, 1 / fan-in), norms near 1, biases small: activations keep their scale through the depth."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = rng.standard_normal(shape, np.float32)
    if len(shape) > 1:
        return values / np.float32(math.sqrt(math.prod(shape[1:])))
    if name.endswith(".weight"):
        return 1 + np.float32(0.1) * values
    return np.float32(0.05) * values
