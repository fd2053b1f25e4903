"""Finds a tokenizer on disk and hands out its checked tensors.

Accepted: a folder with `tokenizer.safetensors` or with `encoder.jit` and/or `decoder.jit`, or one such file. Names,
shapes, dtypes and finiteness are checked here, all at once and before any folding, so that one error tells everything
that is wrong. Which numbers mean what is not known here.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simplear_engine import dtypes
from simplear_engine.errors import CheckpointError
from simplear_engine.image import fsq, layout
from simplear_engine.image.config import TokenizerConfig
from simplear_engine.image.deduce import deduce_config
from simplear_engine.safetensors_file import read_safetensors

FILE_NAME = "tokenizer.safetensors"
_JIT_NAMES = ("encoder.jit", "decoder.jit")


@dataclass(frozen=True)
class TokenizerSource:
    path: Path
    config: TokenizerConfig
    tensors: dict
    has_encoder: bool
    has_decoder: bool

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name].to_float32()


def open_tokenizer(path) -> TokenizerSource:
    """Raises CheckpointError, naming the file and every fault of it."""
    if path == "":  # which is the current folder to Path, and nobody means that
        raise CheckpointError("'': no such file or folder")
    path = Path(path)
    files = _find_files(path)
    if files[0].suffix == ".safetensors":
        tensors, metadata = read_safetensors(files[0])
        if "config" not in metadata:
            raise CheckpointError(f"{files[0]}: its metadata has no key `config` with the tokenizer's configuration")
        config = TokenizerConfig.from_json(metadata["config"], str(files[0]))
    else:
        # Here, because the reader of such files is half of this package and most processes never meet one.
        from simplear_engine.image.jit_file import read_jit

        tensors = {}
        for file in files:
            for name, tensor in read_jit(file).items():
                if name in tensors:
                    raise CheckpointError(f"{file}: holds {name}, as {files[0].name} does")
                tensors[name] = tensor
        config = deduce_config(tensors, str(path))
    halves = _check_layout(path, config, tensors)
    _check_buffers(path, config, tensors)
    _check_finite(path, tensors)
    return TokenizerSource(path, config, tensors, *halves)


def _find_files(path: Path) -> list[Path]:
    if not os.path.lexists(path):
        raise CheckpointError(f"{path}: no such file or folder")
    if path.is_dir():
        if os.path.lexists(path / FILE_NAME):
            return [path / FILE_NAME]
        files = [path / name for name in _JIT_NAMES if os.path.lexists(path / name)]
        if not files:
            raise CheckpointError(f"{path}: holds neither {FILE_NAME} nor {' nor '.join(_JIT_NAMES)}")
        return files
    if path.suffix not in (".safetensors", ".jit"):
        raise CheckpointError(f"{path}: expected a folder, a .safetensors or a .jit file")
    return [path]


def _check_layout(path: Path, config: TokenizerConfig, tensors: dict) -> tuple[bool, bool]:
    """Returns (encoder present, decoder present)."""
    problems, known, present = [], {}, []
    for shapes_of_half in (layout.encoder_shapes, layout.decoder_shapes):
        required, optional = shapes_of_half(config)
        known |= required | optional
        present.append(any(name in tensors for name in required))
        if present[-1]:
            problems += [f"missing {name} {list(shape)}" for name, shape in required.items() if name not in tensors]
    for name, tensor in tensors.items():
        if name in known:
            if tensor.shape != known[name]:
                problems.append(f"{name}: expected {list(known[name])}, got {list(tensor.shape)}")
            if tensor.dtype not in dtypes.FLOATING and tensor.dtype != "float64":
                problems.append(f"{name}: expected floating numbers, got {tensor.dtype}")
        elif not layout.is_buffer(name):
            problems.append(f"unknown tensor {name} {list(tensor.shape)}")
    if not any(present):
        problems.append("neither an encoder nor a decoder")
    if problems:
        raise CheckpointError(
            f"{path}: {len(problems)} faults in a {config.name} tokenizer's tensors:\n  " + "\n  ".join(problems)
        )
    return present[0], present[1]


def _check_buffers(path: Path, config: TokenizerConfig, tensors: dict) -> None:
    """The constants that traced files carry must agree with what we compute instead."""
    for prefix in ("quantizer.", "inv_quant.quantizer."):
        levels = tensors.get(f"{prefix}_levels")
        if levels is not None and tuple(levels.data.reshape(-1).tolist()) != config.levels:
            raise CheckpointError(f"{path}: {prefix}_levels: expected {list(config.levels)}")
        codebook = tensors.get(f"{prefix}implicit_codebook")
        if codebook is not None and not _is_grid(codebook, config):
            raise CheckpointError(f"{path}: {prefix}implicit_codebook: is not the grid of levels {list(config.levels)}")


def _is_grid(codebook, config: TokenizerConfig) -> bool:
    if codebook.shape != (config.num_codes, config.embedding_dim) or codebook.dtype not in dtypes.FLOATING:
        return False
    # Thirds and the like are rounded in the file's type.
    return np.allclose(codebook.to_float32(), fsq.decode(np.arange(config.num_codes), config.levels), atol=1e-2)


def _check_finite(path: Path, tensors: dict) -> None:
    bad = [name for name, tensor in tensors.items() if not layout.is_buffer(name) and not _is_finite(tensor)]
    if bad:
        raise CheckpointError(f"{path}: weights are not finite in " + ", ".join(bad))


def _is_finite(tensor) -> bool:
    if tensor.dtype == "bfloat16":  # all exponent bits set: no need to widen
        return not ((tensor.data & 0x7F80) == 0x7F80).any()
    return bool(np.isfinite(tensor.data).all())
