"""Any loadable checkpoint folder -> one of the engine's own shape.

The result has a single model.safetensors in a chosen dtype, tokenizer.json, simplear.json with the prompt wrapper and
defaults spelled out, and an image tokenizer in safetensors form where there is one. It appears whole or not at all.
Weights pass through in pieces, so memory stays small; nothing is computed on them but a change of dtype.
"""

import dataclasses
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from simplear_engine import draft_file
from simplear_engine.atomic_file import atomic_writer
from simplear_engine.checkpoint import IMAGE_TOKENIZER_FOLDER, Checkpoint, load_checkpoint, resolve
from simplear_engine.config import (
    DEFAULTS_FORMAT,
    GenerationDefaults,
    ModelConfig,
    check_defaults_suit_model,
    generation_defaults_from_dict,
    write_generation_defaults,
)
from simplear_engine.dtypes import FLOATING, from_float32, to_float32
from simplear_engine.errors import CheckpointError, InvalidRequestError, shown
from simplear_engine.safetensors_file import StoredTensor, StreamedTensor, write_safetensors
from simplear_engine.strict_json import read_json_object

_CHUNK_ELEMENTS = 1 << 22


def convert_checkpoint(source, destination, *, dtype: str = "auto", image_tokenizer=None, **defaults) -> Path:
    """Writes the checkpoint `source` (folder, hub id or "default") as the new folder `destination`; returns it.

    `dtype`: "float32", "bfloat16", "float16" or "auto" (each tensor as stored). `image_tokenizer`: where to take one
    from when the folder has none or another is wanted. `defaults` replace fields of GenerationDefaults. CheckpointError
    about the source, InvalidRequestError about the destination or a value.
    """
    destination = Path(destination)
    # A link to nothing is something, too: a folder cannot take its place.
    if os.path.lexists(destination) and (not destination.is_dir() or any(destination.iterdir())):
        raise InvalidRequestError(f"cannot write {destination}: it exists and is not an empty folder")
    if not destination.absolute().parent.is_dir():
        raise InvalidRequestError(f"cannot write {destination}: the folder {destination.parent} does not exist")
    if not isinstance(dtype, str) or dtype not in ("auto", *FLOATING):
        raise InvalidRequestError(f"dtype: expected auto, {', '.join(FLOATING)}, got {shown(dtype)}")
    checkpoint = load_checkpoint(resolve(source))
    wanted = _changed(checkpoint, defaults)
    drafts = checkpoint.path / draft_file.FILE_NAME
    has_drafts = os.path.lexists(drafts)
    if has_drafts:
        draft_file.read_drafts(drafts, checkpoint.model.num_codes)

    unfinished = destination.absolute().with_name(f".{destination.name}.{secrets.token_hex(6)}.tmp")
    try:
        unfinished.mkdir()
    except PermissionError:
        raise InvalidRequestError(f"cannot write {destination}: no permission in {destination.parent}") from None
    try:
        _write_config(checkpoint, unfinished, checkpoint.stored_dtype if dtype == "auto" else dtype)
        checkpoint.text.write_json(unfinished / "tokenizer.json")
        write_generation_defaults(unfinished, wanted)
        tensors = {name: _converted(tensor, dtype) for name, tensor in checkpoint.tensors.items()}
        write_safetensors(unfinished / "model.safetensors", tensors, {"format": "pt"})
        if has_drafts:
            shutil.copyfile(drafts, unfinished / draft_file.FILE_NAME)
        image_source = checkpoint.image_tokenizer_path if image_tokenizer is None else image_tokenizer
        if image_source is not None:
            _write_image_tokenizer(image_source, unfinished / IMAGE_TOKENIZER_FOLDER, checkpoint.model, wanted)
        unfinished.replace(destination)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return destination


def _changed(checkpoint: Checkpoint, changes: dict) -> GenerationDefaults:
    """The checkpoint's defaults with `changes`, which alone can be at fault."""
    values = {"format": DEFAULTS_FORMAT, **dataclasses.asdict(checkpoint.defaults), **changes}
    try:
        wanted = generation_defaults_from_dict(values, "the new simplear.json")
        check_defaults_suit_model(wanted, checkpoint.model, "the new simplear.json")
        for token in (wanted.prompt_begin, wanted.prompt_end):
            checkpoint.text.control_id(token)
    except CheckpointError as error:
        raise InvalidRequestError(str(error)) from None
    return wanted


def _write_config(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    config = read_json_object(checkpoint.path / "config.json")
    config.pop("dtype", None)
    with atomic_writer(folder / "config.json") as file:
        file.write(json.dumps({**config, "torch_dtype": dtype}, indent=2).encode() + b"\n")
    if os.path.lexists(checkpoint.path / "generation_config.json"):
        shutil.copyfile(checkpoint.path / "generation_config.json", folder / "generation_config.json")


def _converted(tensor: StoredTensor, dtype: str) -> StoredTensor | StreamedTensor:
    if dtype in ("auto", tensor.dtype):
        return tensor

    def chunks() -> Iterator[np.ndarray]:
        flat = tensor.data.reshape(-1)
        for start in range(0, flat.size, _CHUNK_ELEMENTS):
            values = to_float32(flat[start : start + _CHUNK_ELEMENTS], tensor.dtype)
            with np.errstate(over="ignore"):
                rounded = from_float32(values, dtype)
            is_finite = np.isfinite(to_float32(rounded, dtype))
            if not is_finite.all():
                found = values[~is_finite][0]
                raise CheckpointError(f"{tensor.path}: {tensor.name}: holds {found:g}, which is not finite as {dtype}")
            yield rounded

    return StreamedTensor(dtype, tensor.shape, chunks)


def _write_image_tokenizer(source, folder: Path, model: ModelConfig, defaults: GenerationDefaults) -> None:
    from simplear_engine.image import layout
    from simplear_engine.image.source import FILE_NAME, open_tokenizer

    tokenizer = open_tokenizer(source)
    found = tokenizer.config.num_codes, tokenizer.config.spatial_compression
    if found != (model.num_codes, defaults.compression):
        raise CheckpointError(
            f"{source}: {found[0]} codes and compression {found[1]}, but the model has {model.num_codes} codes and "
            f"compression {defaults.compression}"
        )
    tensors = {
        name: (tensor.dtype, tensor.data) for name, tensor in tokenizer.tensors.items() if not layout.is_buffer(name)
    }
    folder.mkdir()
    write_safetensors(folder / FILE_NAME, tensors, {"config": json.dumps(tokenizer.config.to_dict())})
