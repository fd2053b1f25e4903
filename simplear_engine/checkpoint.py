"""From a name to a checked checkpoint: folder, configuration, weights, tokenizer.

Accepts Hugging Face folders as SimpleAR publishes them (one or several safetensors files, tied head or not) and hub
ids. Only data formats are read: a folder that holds nothing but pickled weights is refused, and no file of a
checkpoint is ever executed. Whether the weights are finite is the engine's question, and pixels are the image
tokenizer's; this file only says where that one lies.
"""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from simplear_engine.config import (
    DEFAULTS_FILE,
    GenerationDefaults,
    ModelConfig,
    check_defaults_suit_model,
    read_generation_defaults,
    read_model_config,
)
from simplear_engine.dtypes import FLOATING
from simplear_engine.errors import CheckpointError, InvalidRequestError, shown
from simplear_engine.safetensors_file import StoredTensor, read_safetensors, read_safetensors_shards
from simplear_engine.strict_json import read_json_object
from simplear_engine.text import TOKENIZER_FILES, TextTokenizer
from simplear_engine.weights import LM_HEAD, weight_specs

DEFAULT_MODEL = "default"
DEFAULT_MODEL_FOLDER = Path(__file__).parent / "default_model"
IMAGE_TOKENIZER_FOLDER = "vq"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = [
    "config.json",
    "generation_config.json",
    "simplear.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "drafts.safetensors",
    f"{IMAGE_TOKENIZER_FOLDER}/*.safetensors",
    f"{IMAGE_TOKENIZER_FOLDER}/*.jit",
    f"{IMAGE_TOKENIZER_FOLDER}/*.json",
    *TOKENIZER_FILES,
]
_PICKLE_PATTERNS = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
# A buffer that old transformers versions saved; it is computed from rope_theta.
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

_log = logging.getLogger("simplear_engine")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded folder. `tensors` holds exactly the names of `weight_specs(model)`, mapped and read-only."""

    path: Path
    model: ModelConfig
    defaults: GenerationDefaults
    tensors: dict[str, StoredTensor]
    text: TextTokenizer
    image_tokenizer_path: Path | None  # the folder vq/, where there is one
    stored_dtype: str  # of the embedding table, the largest tensor


def resolve(name_or_path, revision: str | None = None) -> Path:
    """The folder that "default", a path or a hub id such as "Daniel0724/SimpleAR-0.5B-RL" stands for.

    An existing folder wins over a hub id of the same spelling; one named default is Path("default") or "./default". Hub
    files come through `huggingface_hub`, whose cache and offline variables (HF_HOME, HF_HUB_OFFLINE) apply; `revision`
    is a branch, tag or commit there. Raises CheckpointError saying what to do, InvalidRequestError where it is no name
    at all or has no revisions.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise InvalidRequestError(f'model: expected "default", a folder or a hub id, got {shown(name_or_path)}')
    name = str(name_or_path)
    if name_or_path == DEFAULT_MODEL:
        _refuse_revision(revision, name)
        if not DEFAULT_MODEL_FOLDER.is_dir():
            raise CheckpointError("this installation holds no default model: name a folder or a hub id instead")
        return DEFAULT_MODEL_FOLDER
    try:
        path = Path(name_or_path).expanduser()
        # An empty string would be the current folder to Path, and nobody means that.
        if name and path.is_dir():
            _refuse_revision(revision, name)
            return path
        if name and os.path.lexists(path):
            found = "a file" if path.exists() else "a broken link"
            raise CheckpointError(f"{path}: expected a checkpoint folder, found {found}")
    except (OSError, RuntimeError) as error:  # a name that is too long, the home of nobody
        raise CheckpointError(f"{shown(name)}: no such folder: {error}") from None
    if not isinstance(name_or_path, str) or not _HUB_ID.fullmatch(name):
        raise CheckpointError(f"{name!r}: no such folder, and not a hub id of the form owner/name")
    return _download(name, revision)


def _refuse_revision(revision: str | None, name: str) -> None:
    if revision is not None:
        raise InvalidRequestError(f"revision: expected None for {name}, which is not on the hub, got {shown(revision)}")


def load_checkpoint(path) -> Checkpoint:
    """Reads and checks the folder `path`. Raises CheckpointError; about weights it lists every fault at once."""
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    # First, because a folder without readable weights deserves that answer and not one about its tokenizer.
    weights_path = _find_weights(folder)
    text = TextTokenizer.from_folder(folder)
    model = read_model_config(folder / "config.json", visual_offset=len(text))
    defaults = read_generation_defaults(folder)
    check_defaults_suit_model(defaults, model, folder / DEFAULTS_FILE)
    for token in (defaults.prompt_begin, defaults.prompt_end):
        text.control_id(token)
    if weights_path.name.endswith(".index.json"):
        stored = read_safetensors_shards(weights_path)
    else:
        stored = read_safetensors(weights_path)[0]
    tensors = _select(stored, model, weights_path)
    _warn_about_repetition_penalty(folder / "generation_config.json")
    image_tokenizer_path = folder / IMAGE_TOKENIZER_FOLDER
    return Checkpoint(
        path=folder,
        model=model,
        defaults=defaults,
        tensors=tensors,
        text=text,
        image_tokenizer_path=image_tokenizer_path if os.path.lexists(image_tokenizer_path) else None,
        stored_dtype=tensors["model.embed_tokens.weight"].dtype,
    )


def _download(repo_id: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        message = f"{repo_id}: no such folder; to fetch it from the hub, install huggingface_hub"
        raise CheckpointError(message) from None
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=_HUB_FILES))
    except Exception as error:
        # Its errors have no common base, and each of them means that the files are not here.
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{repo_id}: neither a folder here nor obtainable from the hub ({reason}). Check the spelling and the "
            f"network, unset HF_HUB_OFFLINE, or download it elsewhere and pass the folder"
        ) from error


def _find_weights(folder: Path) -> Path:
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if os.path.lexists(folder / name):
            return folder / name
    inside = folder / "model"  # where a run of training saves its model, beside its own state
    if (inside / "config.json").exists():
        raise CheckpointError(f"{folder}: holds no weights; did you mean {inside}?")
    pickled = sorted(file.name for pattern in _PICKLE_PATTERNS for file in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder}: holds weights only as {', '.join(pickled[:3])}. Such a file is a pickle, a program that runs "
            f"when it is read, so it is never opened here. Where you trust it, convert it with transformers: "
            f"AutoModelForCausalLM.from_pretrained(IN).save_pretrained(OUT, safe_serialization=True)"
        )
    raise CheckpointError(f"{folder}: holds neither model.safetensors nor model.safetensors.index.json")


def _select(stored: dict[str, StoredTensor], model: ModelConfig, source: Path) -> dict[str, StoredTensor]:
    """The tensors the network needs, in canonical order; one error lists all that are missing or wrong."""
    specs = weight_specs(model)
    faults = []
    for name, spec in specs.items():
        tensor = stored.get(name)
        if tensor is None:
            faults.append(f"{name}: missing, expected {list(spec.shape)}")
        elif tensor.shape != spec.shape:
            faults.append(f"{name}: expected shape {list(spec.shape)}, found {list(tensor.shape)}")
        elif tensor.dtype not in FLOATING:
            faults.append(f"{name}: expected dtype {' or '.join(FLOATING)}, found {tensor.dtype}")
    if faults:
        raise CheckpointError(f"{source}: {len(faults)} weights do not fit config.json:\n  " + "\n  ".join(faults))
    # A tied checkpoint may hold a copy of the table as its head.
    unused = [name for name in stored if name not in specs and name != LM_HEAD and not _DERIVED.fullmatch(name)]
    if unused:
        _log.warning("%s: %d tensors are not part of the network and are ignored: %s", source, len(unused), unused[:8])
    return {name: stored[name] for name in specs}


def _warn_about_repetition_penalty(path: Path) -> None:
    # Inherited from the text model SimpleAR was trained from; over image tokens nobody asked for it.
    if not os.path.lexists(path):
        return
    penalty = read_json_object(path).get("repetition_penalty")
    if penalty is not None and penalty != 1:
        _log.warning("%s: repetition_penalty %r is not applied: images repeat tokens by nature", path, penalty)
