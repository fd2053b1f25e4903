"""Checkpoint folders in SimpleAR's format with random weights, for tests and benchmarks.

    python -m simplear_engine.testing.random_checkpoint --size 0.5b random-0.5b
    python -m simplear_engine.testing.random_checkpoint --size tiny --dtype float32 --untied --shards 3 random-tiny

The networks have the sizes of the published ones, so speed and memory are theirs; the pictures are noise. Weights are
made in pieces and streamed to disk, so even the largest needs little memory. Equal arguments give equal bytes, and a
tensor's values depend on neither shards nor dtype (but for rounding). Knows nothing about training.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from simplear_engine.atomic_file import atomic_writer
from simplear_engine.checkpoint import IMAGE_TOKENIZER_FOLDER
from simplear_engine.config import GenerationDefaults, ModelConfig, model_config_from_dict, write_generation_defaults
from simplear_engine.dtypes import FLOATING, STORAGE, from_float32
from simplear_engine.errors import SimplearError
from simplear_engine.safetensors_file import StreamedTensor, write_safetensors
from simplear_engine.text import QWEN2_WORDS
from simplear_engine.weights import weight_specs

_QWEN = dict(
    num_kv_heads=2, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True, max_position_embeddings=32768,
    num_text_tokens=151672, num_codes=64000,
)  # fmt: skip
SIZES: dict[str, dict] = {
    "0.5b": dict(_QWEN, hidden_size=896, intermediate_size=4864, num_layers=24, num_heads=14),
    "1.5b": dict(_QWEN, hidden_size=1536, intermediate_size=8960, num_layers=28, num_heads=12),
    "tiny": dict(
        _QWEN, hidden_size=64, intermediate_size=160, num_layers=2, num_heads=4, num_text_tokens=264, num_codes=512,
    ),
}  # fmt: skip
TINY_DEFAULTS = GenerationDefaults(prompt_prefix="", negative_prompt="", guidance_scale=3.0, height=64, width=64)

# In the order SimpleAR adds them, behind Qwen2.5's own where there is room for those.
_SIMPLEAR_TOKENS = ["<|t2i|>", "<|i2t|>", "<|soi|>", "<|vtokens|>", "<|t2v|>", "<|v2t|>", "<|sov|>"]
_QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

_CHUNK_ELEMENTS = 1 << 22


def write_random_checkpoint(
    folder,
    size: str = "tiny",
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    shards: int = 1,
    image_tokenizer: bool = False,
    defaults: GenerationDefaults | None = None,
    **overrides,
) -> Path:
    """Writes a checkpoint folder and returns its path.

    `overrides` replace single values of `SIZES[size]`: hidden_size, intermediate_size, num_layers, num_heads,
    num_kv_heads, head_dim, rope_theta, rms_norm_eps, tie_word_embeddings, max_position_embeddings, num_text_tokens
    (at least 264) and num_codes. `defaults` go into simplear.json; without them "tiny" gets 64x64 and the others
    SimpleAR's published ones. CheckpointError where the sizes contradict each other.
    """
    unknown = overrides.keys() - {*SIZES["tiny"], "head_dim"}
    if unknown:
        raise TypeError(f"unknown overrides: {', '.join(sorted(unknown))}")
    if dtype not in FLOATING:
        raise ValueError(f"dtype: expected one of {', '.join(FLOATING)}, got {dtype!r}")
    values = {**SIZES[size], **overrides}
    config_json = _config_json(values, dtype)
    config = model_config_from_dict(config_json, visual_offset=values["num_text_tokens"])

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config_json)
    _write_json(folder / "generation_config.json", {"do_sample": True})
    _write_json(folder / "tokenizer.json", _tokenizer_json(values["num_text_tokens"]))
    if defaults is None and size == "tiny":
        defaults = TINY_DEFAULTS
    if defaults is not None:
        write_generation_defaults(folder, defaults)
    _write_weights(folder, config, dtype, seed, shards)
    if image_tokenizer:
        _write_image_tokenizer(folder / IMAGE_TOKENIZER_FOLDER, config.num_codes, seed)
    return folder


def random_weight(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float32 [shape]: the values that `write_random_checkpoint` rounds and stores under `name`."""
    return np.concatenate(list(_random_chunks(name, shape, seed))).reshape(shape)


def _random_chunks(name: str, shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
    """Norms are 1, all else is normal with deviation 0.02; flat float32 pieces."""
    remaining = math.prod(shape)
    generator = np.random.Generator(np.random.SFC64([seed, *name.encode()]))
    while remaining:
        count = min(remaining, _CHUNK_ELEMENTS)
        remaining -= count
        if name.endswith("norm.weight"):
            yield np.ones(count, np.float32)
        else:
            yield generator.standard_normal(count, np.float32) * np.float32(0.02)


def _config_json(values: dict, dtype: str) -> dict:
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": values["hidden_size"],
        "intermediate_size": values["intermediate_size"],
        "num_hidden_layers": values["num_layers"],
        "num_attention_heads": values["num_heads"],
        "num_key_value_heads": values["num_kv_heads"],
        "rope_theta": values["rope_theta"],
        "rms_norm_eps": values["rms_norm_eps"],
        "vocab_size": values["num_text_tokens"] + values["num_codes"],
        "tie_word_embeddings": values["tie_word_embeddings"],
        "max_position_embeddings": values["max_position_embeddings"],
        "use_sliding_window": False,
        "torch_dtype": dtype,
        # SimpleAR's training leaves these behind; a loader has to ignore them.
        "use_pos_skipping": False,
        "pos_skipping_range": 4096,
        "mm_spatial_pool_mode": "bilinear",
    }
    if "head_dim" in values:
        config["head_dim"] = values["head_dim"]
    return config


def _tokenizer_json(num_tokens: int) -> dict:
    """A byte-level BPE without merges: 256 bytes, entries that no text reaches, then the control tokens."""
    qwen_tokens = _QWEN_TOKENS if num_tokens >= 256 + len(_QWEN_TOKENS + _SIMPLEAR_TOKENS) else _QWEN_TOKENS[:1]
    added = qwen_tokens + _SIMPLEAR_TOKENS
    num_plain = num_tokens - len(added)
    if num_plain < 256:
        raise ValueError(f"num_text_tokens: expected at least {256 + len(added)}, got {num_tokens}")
    # GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from U+0100 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]
    names = characters + [f"<unused{index}>" for index in range(num_plain - 256)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": num_plain + index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for index, token in enumerate(added)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "vocab": {name: index for index, name in enumerate(names)},
            "merges": [],
        },
    }  # fmt: skip


def _write_weights(folder: Path, config: ModelConfig, dtype: str, seed: int, shards: int) -> None:
    specs = weight_specs(config)
    if not 1 <= shards <= len(specs):
        raise ValueError(f"shards: expected 1 to {len(specs)}, got {shards}")

    def stream(name, shape):
        return StreamedTensor(
            dtype, shape, lambda: (from_float32(chunk, dtype) for chunk in _random_chunks(name, shape, seed))
        )

    tensors = {name: stream(name, spec.shape) for name, spec in specs.items()}
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for index in range(shards):
        shard = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[len(names) * index // shards : len(names) * (index + 1) // shards]
        write_safetensors(folder / shard, {name: tensors[name] for name in mine}, {"format": "pt"})
        weight_map |= dict.fromkeys(mine, shard)
    total = sum(math.prod(spec.shape) for spec in specs.values()) * STORAGE[dtype].itemsize
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_image_tokenizer(folder: Path, num_codes: int, seed: int) -> None:
    from simplear_engine.image.random import DV8X16X16, write_random_tokenizer

    if num_codes == DV8X16X16.num_codes:
        write_random_tokenizer(folder, DV8X16X16, seed)
        return
    levels = _levels(num_codes)
    small = {
        "name": "DV", "channels": 8, "channels_mult": [2, 4, 4], "num_res_blocks": 1, "patch_size": 4,
        "spatial_compression": 16, "z_channels": 16, "embedding_dim": len(levels), "levels": levels,
    }  # fmt: skip
    write_random_tokenizer(folder, small, seed)


def _levels(num_codes: int) -> list[int]:
    """Numbers whose product is `num_codes`, as few as go with at most 8 each; a large prime stands alone."""
    levels = []
    while num_codes > 1:
        level = next((level for level in range(8, 1, -1) if num_codes % level == 0), num_codes)
        levels.append(level)
        num_codes //= level
    return levels


def _write_json(path: Path, value) -> None:
    with atomic_writer(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m simplear_engine.testing.random_checkpoint",
        description="Write a checkpoint folder in SimpleAR's format with random weights.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--dtype", choices=FLOATING, default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--untied", action="store_true", help="give the output head a matrix of its own")
    parser.add_argument("--shards", type=int, default=1, help="number of safetensors files")
    parser.add_argument("--image-tokenizer", action="store_true", help="also write a random image tokenizer to vq/")
    options = parser.parse_args(arguments)
    overrides = {"tie_word_embeddings": False} if options.untied else {}
    try:
        write_random_checkpoint(
            options.folder, options.size, dtype=options.dtype, seed=options.seed, shards=options.shards,
            image_tokenizer=options.image_tokenizer, **overrides,
        )  # fmt: skip
    except (SimplearError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
