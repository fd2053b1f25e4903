"""CosmosTokenizer: pictures to code indices and back.

Loading checks the files; either half is built at its first use, because folding a published decoder takes a second and
generating pictures never needs the encoder. Whoever wants the decoder ready before that calls `prepare()`, on a thread
of their own choosing. Either may be absent from the files. Threads may share one tokenizer; their calls take turns.
"""

import threading
from collections.abc import Callable

import numpy as np

from simplear_engine import _C
from simplear_engine.errors import CheckpointError, InvalidRequestError, NumericalError, UnsupportedError, shown
from simplear_engine.image import folding, fsq, network, pixels
from simplear_engine.image.config import TokenizerConfig
from simplear_engine.image.source import TokenizerSource, open_tokenizer

DTYPES = ("float32", "bfloat16")


class CosmosTokenizer:
    config: TokenizerConfig

    def __init__(self, source: TokenizerSource, backend):
        self.config = source.config
        self._source, self._backend = source, backend
        self._encoder = _Half(folding.fold_encoder, source, backend)
        self._decoder = _Half(folding.fold_decoder, source, backend)

    @classmethod
    def from_pretrained(
        cls, path, dtype: str = "float32", threads: int | None = None, pool=None, device: str = "cpu"
    ) -> "CosmosTokenizer":
        """Loads from a folder (`tokenizer.safetensors`, or `encoder.jit` / `decoder.jit`) or from one such file.

        `dtype` ("float32" or "bfloat16") is what is computed in; the files may hold any floating type. `threads`
        defaults to all physical cores; `pool` shares the threads of an engine instead. `device` "cuda" computes on the
        current GPU of torch, with Triton. Raises CheckpointError.
        """
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise InvalidRequestError(f"dtype: expected one of {', '.join(DTYPES)}, got {shown(dtype)}")
        if not isinstance(device, str) or device not in ("cpu", "cuda"):
            raise InvalidRequestError(f"device: expected cpu or cuda, got {shown(device)}")
        if device == "cuda" and not (found := _C.cuda_devices())[0]:
            raise UnsupportedError(f"device='cuda': no GPU was found ({found[1]})")
        source = open_tokenizer(path)
        from simplear_engine.image.backend import CpuBackend, TritonBackend

        return cls(source, TritonBackend(dtype) if device == "cuda" else CpuBackend(dtype, threads, pool))

    @property
    def compression(self) -> int:
        """Pixels of an image's side for each code."""
        return self.config.spatial_compression

    @property
    def num_codes(self) -> int:
        return self.config.num_codes

    def prepare(self) -> None:
        """Builds the decoder, so that the first `decode` need not; nothing where there is none."""
        if self._source.has_decoder:
            self._decoder.build()

    def decode(self, indices) -> np.ndarray:
        """int [B, h, w] with 0 <= index < num_codes -> float32 [B, 3, H, W], nominally in [-1, 1], not clamped.

        Raises NumericalError where the network overflows."""
        if not self._source.has_decoder:
            raise CheckpointError(f"{self._source.path}: holds no decoder, so it cannot turn codes into pictures")
        indices = np.asarray(indices)
        if indices.ndim != 3 or indices.dtype.kind not in "iu":
            raise InvalidRequestError(
                f"indices: expected integers [B, h, w], got {indices.dtype} {list(indices.shape)}"
            )
        if 0 in indices.shape:
            raise InvalidRequestError(f"indices: expected at least one code, got {list(indices.shape)}")
        if indices.min() < 0 or indices.max() >= self.num_codes:
            raise InvalidRequestError(
                f"indices: expected 0..{self.num_codes - 1}, got {indices.min()}..{indices.max()}"
            )
        codes = self._backend.codes_of(indices, self.config.levels)
        images = self._decoder.run(codes, lambda patches: pixels.patches_to_image(patches, self.config.patch_size))
        if not np.isfinite(images).all():
            raise NumericalError(f"{self._source.path}: its decoder made pixels that are NaN or infinity")
        return images

    def encode(self, images) -> np.ndarray:
        """float32 [B, 3, H, W] in [-1, 1], H and W multiples of `compression` -> int32 [B, h, w]."""
        if not self._source.has_encoder:
            raise CheckpointError(f"{self._source.path}: holds no encoder, so it cannot turn pictures into codes")
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype.kind != "f":
            raise InvalidRequestError(f"images: expected floats [B, 3, H, W], got {images.dtype} {list(images.shape)}")
        size = self.compression
        if 0 in images.shape or images.shape[2] % size or images.shape[3] % size:
            raise InvalidRequestError(f"images: expected sides that are multiples of {size}, got {list(images.shape)}")
        images = images.astype(np.float32, copy=False)
        if not np.isfinite(images).all():
            raise InvalidRequestError("images: expected finite numbers")
        patches = pixels.image_to_patches(images, self.config.patch_size)
        return self._encoder.run(patches, lambda z: fsq.encode(z, self.config.levels))


class _Half:
    """One direction of the network: its layers, built when first needed, and the last size it was prepared for."""

    def __init__(self, fold, source: TokenizerSource, backend):
        self._fold, self._source, self._backend = fold, source, backend
        self._lock = threading.Lock()
        self._layers: list | None = None
        self._prepared: tuple[tuple[int, ...], Callable] | None = None

    def build(self) -> None:
        with self._lock:
            if self._layers is None:
                self._layers = self._fold(self._source.config, self._source.read, self._backend.packer)

    def run(self, x: np.ndarray, finish: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """finish(network(x)); the network's own result is overwritten by the next call."""
        self.build()
        with self._lock:
            if self._prepared is None or self._prepared[0] != x.shape:
                # The old size's memory goes before the new one's is taken.
                self._prepared = None
                layers = self._layers
                prepared = self._backend.prepare(x.shape, lambda ops, start: network.run(layers, ops, start))
                self._prepared = (x.shape, prepared)
            return finish(self._prepared[1](x))
