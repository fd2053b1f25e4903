"""CosmosTokenizer: pictures to code indices and back.

The decoder is built when the tokenizer is loaded, the encoder at its first use, because generating pictures never
needs it. Either may be absent from the files. A call keeps no state, so threads may share one tokenizer.
"""

import threading

import numpy as np

from simplear_engine.errors import CheckpointError, InvalidRequestError
from simplear_engine.image import folding, fsq, network, pixels
from simplear_engine.image.config import TokenizerConfig
from simplear_engine.image.source import TokenizerSource, open_tokenizer

DTYPES = ("float32", "bfloat16")


class CosmosTokenizer:
    config: TokenizerConfig

    def __init__(self, source: TokenizerSource, ops):
        self.config = source.config
        self._source = source
        self._ops = ops
        self._encoder_lock = threading.Lock()
        self._encoder: list | None = None
        self._decoder = folding.fold_decoder(self.config, source.read, ops) if source.has_decoder else None

    @classmethod
    def from_pretrained(cls, path, dtype: str = "float32") -> "CosmosTokenizer":
        """Loads from a folder (`tokenizer.safetensors`, or `encoder.jit` / `decoder.jit`) or from one such file.

        `dtype` is what is computed in; the files may hold any floating type. Raises CheckpointError.
        """
        if dtype not in DTYPES:
            raise InvalidRequestError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
        return cls(open_tokenizer(path), make_ops(dtype))

    @property
    def compression(self) -> int:
        """Pixels of an image's side for each code."""
        return self.config.spatial_compression

    @property
    def num_codes(self) -> int:
        return self.config.num_codes

    def decode(self, indices) -> np.ndarray:
        """int [B, h, w] with 0 <= index < num_codes -> float32 [B, 3, H, W], nominally in [-1, 1], not clamped."""
        if self._decoder is None:
            raise CheckpointError(f"{self._source.path}: holds no decoder, so it cannot turn codes into pictures")
        indices = np.asarray(indices)
        if indices.ndim != 3 or indices.dtype.kind not in "iu":
            raise InvalidRequestError(f"indices: expected integers [B, h, w], got {indices.dtype} {list(indices.shape)}")
        if 0 in indices.shape:
            raise InvalidRequestError(f"indices: expected at least one code, got {list(indices.shape)}")
        if indices.min() < 0 or indices.max() >= self.num_codes:
            raise InvalidRequestError(f"indices: expected 0..{self.num_codes - 1}, got {indices.min()}..{indices.max()}")
        codes = self._ops.from_numpy(fsq.decode(indices, self.config.levels))
        patches = self._ops.to_numpy(network.run(self._decoder, self._ops, codes))
        return pixels.patches_to_image(patches, self.config.patch_size)

    def encode(self, images) -> np.ndarray:
        """float32 [B, 3, H, W] in [-1, 1], H and W multiples of `compression` -> int32 [B, h, w]."""
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype.kind != "f":
            raise InvalidRequestError(f"images: expected floats [B, 3, H, W], got {images.dtype} {list(images.shape)}")
        size = self.compression
        if 0 in images.shape or images.shape[2] % size or images.shape[3] % size:
            raise InvalidRequestError(f"images: expected sides that are multiples of {size}, got {list(images.shape)}")
        images = images.astype(np.float32, copy=False)
        if not np.isfinite(images).all():
            raise InvalidRequestError("images: expected finite numbers")
        patches = self._ops.from_numpy(pixels.image_to_patches(images, self.config.patch_size))
        z = self._ops.to_numpy(network.run(self._built_encoder(), self._ops, patches))
        return fsq.encode(z, self.config.levels)

    def _built_encoder(self) -> list:
        if not self._source.has_encoder:
            raise CheckpointError(f"{self._source.path}: holds no encoder, so it cannot turn pictures into codes")
        with self._encoder_lock:
            if self._encoder is None:
                self._encoder = folding.fold_encoder(self.config, self._source.read, self._ops)
            return self._encoder


def make_ops(dtype: str):
    from .reference_ops import ReferenceOps

    return ReferenceOps()
