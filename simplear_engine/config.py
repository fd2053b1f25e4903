"""What a checkpoint folder says about its network and about how it likes to be asked.

`ModelConfig` comes from config.json (Qwen2's keys; keys we do not use are ignored), `GenerationDefaults` from the small
file simplear.json, or SimpleAR's published values where a folder has none. Values are checked here once, so the rest
of the engine may trust them. Nothing here opens weights or tokenizers.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from simplear_engine.atomic_file import atomic_writer
from simplear_engine.errors import CheckpointError, InvalidRequestError
from simplear_engine.strict_json import read_json_object

DEFAULTS_FILE = "simplear.json"
DEFAULTS_FORMAT = 1
MAX_SIDE = 1 << 16  # of a picture, in pixels
# What config.json calls these fields of ModelConfig.
_CONFIG_JSON_KEYS = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
}


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a Qwen2-family decoder and where its visual codes begin."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    visual_offset: int  # token id of visual code 0 = number of text tokens

    @property
    def num_codes(self) -> int:
        """How many visual codes there are: everything behind the text vocabulary."""
        return self.vocab_size - self.visual_offset

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads


def read_model_config(path, visual_offset: int) -> ModelConfig:
    """Reads the config.json at `path`; `visual_offset` is the length of the checkpoint's tokenizer.

    Raises CheckpointError naming file, key, what was expected and what was found.
    """
    return model_config_from_dict(read_json_object(path), visual_offset, path)


def model_config_from_dict(values: dict, visual_offset: int, source="config.json") -> ModelConfig:
    """As `read_model_config`, from values already in memory; `source` names them in errors."""
    read = _Reader(values, source, _CONFIG_JSON_KEYS)
    read.one_of("model_type", ("qwen2",))
    read.one_of("hidden_act", ("silu",), default="silu")
    read.one_of("use_sliding_window", (False,), default=False)
    read.one_of("quantization_config", (None,), default=None)
    rope_theta = _read_rope_theta(read)
    if any(kind != "full_attention" for kind in read.list("layer_types")):
        read.fail("layer_types", "full_attention in every layer", values["layer_types"])

    if values.get("head_dim") is None:
        hidden_size, num_heads = read.integer("hidden_size", 1, 1 << 20), read.integer("num_heads", 1, 1 << 12)
        if hidden_size % num_heads:
            read.fail("num_heads", f"a divisor of hidden_size = {hidden_size} where head_dim is absent", num_heads)
        values = {**values, "head_dim": hidden_size // num_heads}
    values = {**values, "rope_theta": rope_theta, "visual_offset": visual_offset}
    return _read_sizes(_Reader(values, source, _CONFIG_JSON_KEYS))


def _read_sizes(read: "_Reader") -> ModelConfig:
    num_heads, num_kv_heads = read.integer("num_heads", 1, 1 << 12), read.integer("num_kv_heads", 1, 1 << 12)
    if num_heads % num_kv_heads:
        read.fail("num_kv_heads", f"a divisor of {read.name('num_heads')} = {num_heads}", num_kv_heads)
    head_dim = read.integer("head_dim", 2, 1 << 20)
    if head_dim % 2:
        read.fail("head_dim", "an even number, because rotary embedding turns pairs", head_dim)
    vocab_size, visual_offset = read.integer("vocab_size", 1, 1 << 30), read.integer("visual_offset", 0, 1 << 30)
    if vocab_size <= visual_offset:
        expected = f"more than the tokenizer's {visual_offset} text tokens, because visual codes follow them"
        read.fail("vocab_size", expected, vocab_size)
    return ModelConfig(
        hidden_size=read.integer("hidden_size", 1, 1 << 20),
        intermediate_size=read.integer("intermediate_size", 1, 1 << 22),
        num_layers=read.integer("num_layers", 1, 1 << 12),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rope_theta=read.number("rope_theta", below=1e12),
        rms_norm_eps=read.number("rms_norm_eps", below=1),
        vocab_size=vocab_size,
        tie_word_embeddings=read.boolean("tie_word_embeddings"),
        max_position_embeddings=read.integer("max_position_embeddings", 1, 1 << 30),
        visual_offset=visual_offset,
    )


@dataclass(frozen=True)
class GenerationDefaults:
    """How prompts are wrapped and what is used where a request says nothing. SimpleAR's published values."""

    prompt_begin: str = "<|t2i|>"
    prompt_prefix: str = "A highly realistic image of "
    prompt_end: str = "<|soi|>"
    negative_prompt: str = (
        "An image of aerial view, overexposed, low quality, deformation, a poor composition, bad hands, bad teeth, "
        "bad eyes, bad limbs, distortion"
    )
    guidance_scale: float = 6.0
    height: int = 1024
    width: int = 1024
    top_k: int | None = None
    compression: int = 16


def read_generation_defaults(folder) -> GenerationDefaults:
    """The folder's simplear.json, or SimpleAR's published values where it has none. Raises CheckpointError."""
    path = Path(folder) / DEFAULTS_FILE
    if not os.path.lexists(path):  # a broken link is there, and an error where it is read
        return GenerationDefaults()
    return generation_defaults_from_dict(read_json_object(path), path)


def generation_defaults_from_dict(values: dict, source=DEFAULTS_FILE) -> GenerationDefaults:
    """As `read_generation_defaults`, from values already in memory. Unlike config.json this is our own format, so an
    unknown key is an error and not ignored."""
    published = GenerationDefaults()
    known = [field.name for field in dataclasses.fields(published)]
    read = _Reader({**dataclasses.asdict(published), **values}, source)
    read.one_of("format", (DEFAULTS_FORMAT,))
    for key in values:
        if key not in known and key != "format":
            raise CheckpointError(f"{source}: unknown key {key!r}; known are {', '.join(known)}")
    compression = read.integer("compression", 1, 1 << 10)
    sizes = {name: read.integer(name, 1, MAX_SIDE) for name in ("height", "width")}
    for name, size in sizes.items():
        if size % compression:
            read.fail(name, f"a multiple of compression = {compression}", size)
    return GenerationDefaults(
        prompt_begin=read.text("prompt_begin"),
        prompt_prefix=read.text("prompt_prefix"),
        prompt_end=read.text("prompt_end"),
        negative_prompt=read.text("negative_prompt"),
        guidance_scale=read.number("guidance_scale", below=1e6, zero_allowed=True),
        top_k=None if read.values["top_k"] is None else read.integer("top_k", 1, 1 << 30),
        compression=compression,
        **sizes,
    )


def check_defaults_suit_model(defaults: GenerationDefaults, model: ModelConfig, source) -> None:
    """Raises CheckpointError, which calls the defaults `source`, where the model cannot do what they say."""
    if defaults.top_k is not None and defaults.top_k > model.num_codes:
        raise CheckpointError(
            f"{source}: top_k: expected at most {model.num_codes}, the model's number of codes, found {defaults.top_k}"
        )


def check_given(model: ModelConfig, defaults: GenerationDefaults) -> None:
    """What the readers of both files check, for values that a caller made. Raises InvalidRequestError."""
    try:
        _read_sizes(_Reader(dataclasses.asdict(model), "config"))
        generation_defaults_from_dict({"format": DEFAULTS_FORMAT, **dataclasses.asdict(defaults)}, "defaults")
        check_defaults_suit_model(defaults, model, "defaults")
    except CheckpointError as error:
        raise InvalidRequestError(str(error)) from None


def write_generation_defaults(folder, defaults: GenerationDefaults) -> None:
    """Writes simplear.json into `folder`, every key spelled out."""
    text = json.dumps({"format": DEFAULTS_FORMAT, **dataclasses.asdict(defaults)}, indent=2)
    with atomic_writer(Path(folder) / DEFAULTS_FILE) as file:
        file.write(text.encode() + b"\n")


def _read_rope_theta(read: "_Reader") -> float:
    # Newer transformers nest what older ones keep at the top; a scaled kind of RoPE is another function altogether.
    for key in ("rope_scaling", "rope_parameters"):
        nested = read.values.get(key)
        if nested is None:
            continue
        if not isinstance(nested, dict):
            read.fail(key, "an object or null", nested)
        kind = nested.get("rope_type", nested.get("type", "default"))
        if kind != "default":
            read.fail(key, 'rope_type "default", no other is supported', kind)
        if "rope_theta" in nested:
            return _Reader(nested, f"{read.source}: {key}").number("rope_theta", below=1e12)
    return read.number("rope_theta", below=1e12)


class _Reader:
    """Typed reads from one JSON object; every failure names the source, the key, the expected and the found.

    keys: what the source calls a key, where that is not its name here.
    """

    def __init__(self, values: dict, source, keys: dict[str, str] | None = None):
        self.values = values
        self.source = source
        self._keys = keys or {}

    def name(self, key: str) -> str:
        return self._keys.get(key, key)

    def fail(self, key: str, expected: str, found) -> None:
        raise CheckpointError(f"{self.source}: {self.name(key)}: expected {expected}, found {found!r:.200}")

    def _get(self, key: str, expected: str):
        if self.name(key) not in self.values:
            raise CheckpointError(f"{self.source}: {self.name(key)}: expected {expected}, but the key is missing")
        return self.values[self.name(key)]

    def integer(self, key: str, low: int, high: int) -> int:
        expected = f"an integer from {low} to {high}"
        value = self._get(key, expected)
        if type(value) is not int or not low <= value <= high:
            self.fail(key, expected, value)
        return value

    def number(self, key: str, below: float, zero_allowed: bool = False) -> float:
        expected = f"a number {'from' if zero_allowed else 'above'} 0 and below {below:g}"
        value = self._get(key, expected)
        # NaN fails both comparisons.
        if type(value) not in (int, float) or not 0 <= value < below or (value == 0 and not zero_allowed):
            self.fail(key, expected, value)
        return float(value)

    def boolean(self, key: str) -> bool:
        value = self._get(key, "true or false")
        if type(value) is not bool:
            self.fail(key, "true or false", value)
        return value

    def text(self, key: str) -> str:
        value = self._get(key, "a string")
        if not isinstance(value, str) or any("\ud800" <= char <= "\udfff" for char in value):
            self.fail(key, "a string of valid Unicode", value)
        return value

    def list(self, key: str) -> list:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.fail(key, "a list", value)
        return value

    def one_of(self, key: str, choices: tuple, **default) -> None:
        expected = " or ".join(map(repr, choices))
        value = self.values.get(key, default["default"]) if default else self._get(key, expected)
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            self.fail(key, expected, value)
