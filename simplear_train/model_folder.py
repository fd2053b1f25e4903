"""Model folders as training takes and gives them: where a run starts from, and what it leaves behind.

A run starts from scratch, from a folder that already draws (SimpleAR's or our own), or from a Qwen2.5 text model, whose
vocabulary then grows by seven control tokens and one row per visual code. Whatever the start, the folder that comes
out is laid out as SimpleAR publishes it: served by the engine, by transformers and by SimpleAR's own loader. Keys of
config.json that training has no opinion about travel unchanged.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from simplear_engine.checkpoint import IMAGE_TOKENIZER_FOLDER, load_checkpoint, resolve
from simplear_engine.config import (
    GenerationDefaults,
    ModelConfig,
    model_config_from_dict,
    write_generation_defaults,
)
from simplear_engine.dtypes import to_float32
from simplear_engine.errors import CheckpointError, InvalidRequestError
from simplear_engine.safetensors_file import read_safetensors, read_safetensors_shards
from simplear_engine.strict_json import read_json_object
from simplear_engine.text import TOKENIZER_FILES, TextTokenizer
from simplear_engine.weights import LM_HEAD, weight_specs

from .lora import LoraConfig, merged, save_adapter
from .model import Qwen2Model
from .text_tokenizer import CONTROL_TOKENS

EMBEDDING = "model.embed_tokens.weight"
_TABLES = (EMBEDDING, LM_HEAD)


@dataclass
class ModelFolder:
    """A model and all that belongs into its folder. `files` maps names in the folder to bytes; `image_tokenizer` is the
    folder vq/ to take along, where there is one."""

    model: Qwen2Model
    text: TextTokenizer
    defaults: GenerationDefaults
    config_json: dict
    files: dict[str, bytes] = field(default_factory=dict)
    image_tokenizer: Path | None = None
    lora: LoraConfig = LoraConfig()
    source: str = ""

    def canonical(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The model's weights by the engine's names, adapters merged."""
        return merged(weights, self.lora) if self.lora.rank else weights

    def save(self, folder: Path, dtype: torch.dtype, weights: Mapping[str, Tensor] | None = None) -> None:
        """Writes the folder beside its place and moves it there, so that nobody ever loads half a model.

        `weights` (by default the model's own) may be those of an average. Adapters are merged, and stand alone in
        adapter/, too.
        """
        building, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        weights = weights or self.model.state_dict()
        save_weights(building, self.canonical(weights), dtype)
        if self.lora.rank:
            save_adapter(building / "adapter", weights, self.lora, self.source)
        config = {**self.config_json, "torch_dtype": str(dtype).removeprefix("torch.")}
        (building / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name, content in self.files.items():
            (building / name).write_bytes(content)
        write_generation_defaults(building, self.defaults)
        if self.image_tokenizer is not None:
            shutil.copytree(self.image_tokenizer, building / IMAGE_TOKENIZER_FOLDER)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        building.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def save_weights(folder: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in weights.items()}
    path = folder / "model.safetensors"
    save_file(tensors, str(path), metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes private files; a model is for whoever may read its folder


def load_model(folder: Path) -> Qwen2Model:
    """The float32 model of a folder."""
    checkpoint = load_checkpoint(folder)
    return _model(checkpoint.model, {n: _tensor(t) for n, t in checkpoint.tensors.items()})


def from_folder(name: str, image_tokenizer: str | None = None) -> ModelFolder:
    """From a folder that draws, SimpleAR's or our own, or from "default", the embedded model. `image_tokenizer`: the folder
    to use instead of its vq/."""
    folder = resolve(name)
    checkpoint = load_checkpoint(folder)
    names = (*TOKENIZER_FILES, "generation_config.json", "NOTICE")
    return ModelFolder(
        model=_model(checkpoint.model, {n: _tensor(t) for n, t in checkpoint.tensors.items()}),
        text=checkpoint.text,
        defaults=checkpoint.defaults,
        config_json=read_json_object(folder / "config.json"),
        files={name: (folder / name).read_bytes() for name in names if (folder / name).exists()},
        image_tokenizer=image_tokenizer_folder(image_tokenizer) or checkpoint.image_tokenizer_path,
        source=name,
    )


def from_scratch(
    config: ModelConfig, tokenizer, defaults: GenerationDefaults, image_tokenizer: Path | None = None
) -> ModelFolder:
    """Random weights (torch's seed decides), with a `tokenizers.Tokenizer` of one's own."""
    model = Qwen2Model(config)
    return ModelFolder(
        model=model,
        text=TextTokenizer(tokenizer, "the new text tokenizer"),
        defaults=defaults,
        config_json=config_json(config),
        files={
            "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
            "generation_config.json": b'{\n  "do_sample": true,\n  "temperature": 1.0,\n  "top_p": 1.0\n}\n',
        },
        image_tokenizer=image_tokenizer,
    )


def from_qwen(name: str, num_codes: int, defaults: GenerationDefaults) -> ModelFolder:
    """From a Qwen2.5 folder: seven control tokens and `num_codes` rows more, each the mean of the rows before them.

    A table of Qwen's is longer than its tokenizer; rows that no text token names are cut off first, as SimpleAR does.
    """
    from tokenizers import AddedToken

    folder = resolve(name)
    tokenizer = _tokenizer_of(folder)
    num_text = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    offset = tokenizer.get_vocab_size()
    if offset != num_text + len(CONTROL_TOKENS):
        raise CheckpointError(f"{folder}: its tokenizer already has some of {', '.join(CONTROL_TOKENS)}")
    entry = {**read_json_object(folder / "config.json"), "vocab_size": offset + num_codes}
    config = model_config_from_dict(entry, offset, folder / "config.json")
    index = folder / "model.safetensors.index.json"
    stored = read_safetensors_shards(index) if index.exists() else read_safetensors(folder / "model.safetensors")[0]
    tensors = {}
    for weight in weight_specs(config):
        if weight not in stored:
            raise CheckpointError(f"{folder}: {weight} is missing")
        tensors[weight] = _tensor(stored[weight])
        if weight in _TABLES:
            tensors[weight] = grow_table(tensors[weight][:num_text], offset + num_codes)
    files = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": _tokenizer_config(folder, tokenizer),
        # Qwen's own repetition penalty and top-k are meant for text.
        "generation_config.json": b'{\n  "do_sample": true,\n  "temperature": 1.0,\n  "top_p": 1.0\n}\n',
    }
    for name in ("vocab.json", "merges.txt"):
        if (folder / name).exists():
            files[name] = (folder / name).read_bytes()
    added = {t.content: i for i, t in sorted(tokenizer.get_added_tokens_decoder().items())}
    files["added_tokens.json"] = (json.dumps(added, indent=2) + "\n").encode()
    return ModelFolder(
        _model(config, tensors), TextTokenizer(tokenizer, folder / "tokenizer.json"), defaults, entry, files
    )


def image_tokenizer_folder(path: str | None) -> Path | None:
    """Checked at the start of a run, because it is only needed when the first model is saved."""
    if path is None:
        return None
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InvalidRequestError(f"image_tokenizer: expected a folder that holds one, found none at {path!r}")
    return folder


def grow_table(table: Tensor, num_rows: int) -> Tensor:
    """`table` with mean rows behind it: a new token begins as the average of those that mean something."""
    mean = table.mean(0, keepdim=True)
    return torch.cat([table, mean.expand(num_rows - len(table), -1)])


def config_json(config: ModelConfig) -> dict:
    """config.json as Hugging Face writes it."""
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim, "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps, "max_position_embeddings": config.max_position_embeddings,
        "hidden_act": "silu", "attention_dropout": 0.0, "initializer_range": 0.02,
        "tie_word_embeddings": config.tie_word_embeddings, "use_cache": True, "use_sliding_window": False,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip


def _tensor(stored) -> Tensor:
    return torch.from_numpy(to_float32(stored.data, stored.dtype).copy())


def _model(config: ModelConfig, tensors: dict[str, Tensor]) -> Qwen2Model:
    with torch.device("meta"):  # no random values that are overwritten at once
        model = Qwen2Model(config)
    model.load_state_dict(tensors, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def _tokenizer_of(folder: Path):
    from tokenizers import Tokenizer

    return Tokenizer.from_str(TextTokenizer.from_folder(folder).to_json())


def _tokenizer_config(folder: Path, tokenizer) -> bytes:
    path = folder / "tokenizer_config.json"
    values = read_json_object(path) if path.exists() else {"tokenizer_class": "Qwen2Tokenizer"}
    values["added_tokens_decoder"] = {
        str(token_id): {
            "content": token.content, "lstrip": token.lstrip, "normalized": token.normalized, "rstrip": token.rstrip,
            "single_word": token.single_word, "special": token.special,
        }
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }  # fmt: skip
    values["additional_special_tokens"] = list(CONTROL_TOKENS)
    values["padding_side"] = "right"
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
