"""config.json and simplear.json: published forms are understood, everything else is refused by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplear_engine.config import (
    GenerationDefaults,
    ModelConfig,
    generation_defaults_from_dict,
    model_config_from_dict,
    read_generation_defaults,
    read_model_config,
    write_generation_defaults,
)
from simplear_engine.errors import CheckpointError
from simplear_engine.weights import weight_specs

PUBLISHED = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-06,
    "vocab_size": 215672,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 32768,
    "use_pos_skipping": False,
    "pos_skipping_range": 4096,
    "mm_spatial_pool_mode": "bilinear",
    "use_cache": False,
    "rope_scaling": None,
}
OFFSET = 151672


def with_changes(**changes):
    values = {**PUBLISHED, **changes}
    return {key: value for key, value in values.items() if value is not ...}


def test_published_config_is_understood_and_its_extra_keys_are_ignored():
    assert model_config_from_dict(PUBLISHED, OFFSET) == ModelConfig(
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        vocab_size=215672,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
        visual_offset=OFFSET,
    )


def test_codes_are_what_follows_the_text_vocabulary():
    config = model_config_from_dict(PUBLISHED, OFFSET)
    assert (config.num_codes, config.group_size) == (64000, 7)


def test_published_sizes_have_the_published_number_of_parameters():
    from math import prod

    config = model_config_from_dict(PUBLISHED, OFFSET)
    assert round(sum(prod(spec.shape) for spec in weight_specs(config).values()) / 1e5) == 5511


def test_head_is_a_weight_only_when_it_is_not_tied():
    tied, untied = (
        weight_specs(model_config_from_dict(with_changes(tie_word_embeddings=tie), OFFSET)) for tie in (True, False)
    )
    assert untied.keys() - tied.keys() == {"lm_head.weight"}
    assert untied["lm_head.weight"].shape == (215672, 896)


def test_head_dim_may_be_given_and_then_heads_need_not_divide_the_width():
    config = model_config_from_dict(with_changes(head_dim=48, num_attention_heads=9, num_key_value_heads=3), OFFSET)
    assert config.head_dim == 48
    assert weight_specs(config)["model.layers.0.self_attn.q_proj.weight"].shape == (432, 896)


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_rope_theta_may_stand_where_newer_files_write_it(key):
    values = with_changes(rope_theta=..., **{key: {"rope_theta": 5e5, "rope_type": "default"}})
    assert model_config_from_dict(values, OFFSET).rope_theta == 5e5


def test_what_transformers_writes_today_is_understood(tmp_path):
    from transformers import Qwen2Config

    Qwen2Config(vocab_size=300, hidden_size=32, num_attention_heads=2, num_key_value_heads=1).save_pretrained(tmp_path)
    config = read_model_config(tmp_path / "config.json", 200)
    assert (config.hidden_size, config.head_dim, config.num_codes) == (32, 16, 100)


@pytest.mark.parametrize(
    "key",
    [
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "rope_theta", "rms_norm_eps", "vocab_size", "tie_word_embeddings",
        "max_position_embeddings",
    ],
)  # fmt: skip
def test_missing_key_is_named(key):
    with pytest.raises(CheckpointError, match=f"config.json: {key}: expected .* missing"):
        model_config_from_dict(with_changes(**{key: ...}), OFFSET)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"), ("model_type", None), ("hidden_act", "gelu"), ("use_sliding_window", True),
        ("use_sliding_window", 0), ("rope_scaling", {"type": "yarn", "factor": 4.0}), ("rope_scaling", "linear"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6}), ("quantization_config", {"bits": 4}),
        ("layer_types", ["full_attention", "sliding_attention"]), ("layer_types", "full_attention"),
        ("hidden_size", "896"), ("hidden_size", 896.0), ("hidden_size", True), ("hidden_size", 0),
        ("hidden_size", -896), ("hidden_size", 10**12), ("hidden_size", None), ("hidden_size", [896]),
        ("num_hidden_layers", 0), ("num_hidden_layers", 10**9), ("intermediate_size", 0),
        ("num_attention_heads", 0), ("num_attention_heads", "14"), ("num_key_value_heads", 4), ("num_key_value_heads", 0),
        ("head_dim", 63), ("head_dim", "64"), ("head_dim", 0),
        ("rope_theta", 0), ("rope_theta", float("nan")), ("rope_theta", float("inf")), ("rope_theta", -1.0),
        ("rope_theta", "1e6"), ("rope_theta", True), ("rope_theta", 10**400),
        ("rms_norm_eps", 0), ("rms_norm_eps", -1e-6), ("rms_norm_eps", 1), ("rms_norm_eps", float("nan")),
        ("vocab_size", OFFSET), ("vocab_size", 1000), ("vocab_size", 10**12),
        ("tie_word_embeddings", "true"), ("tie_word_embeddings", 1), ("max_position_embeddings", 0),
    ],
)  # fmt: skip
def test_unusable_value_is_refused_with_its_key(key, value):
    with pytest.raises(CheckpointError, match=f"config.json: {key}: "):
        model_config_from_dict(with_changes(**{key: value}), OFFSET)


def test_odd_head_size_from_division_is_refused():
    with pytest.raises(CheckpointError, match="head_dim: expected an even number"):
        model_config_from_dict(with_changes(hidden_size=14 * 63), OFFSET)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(CheckpointError, match="num_attention_heads: expected a divisor of hidden_size = 900"):
        model_config_from_dict(with_changes(hidden_size=900), OFFSET)


few_letters = st.text("aé名\ud800", max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | few_letters,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(few_letters, children, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from(sorted({*PUBLISHED, "head_dim", "rope_parameters", "layer_types"})), json_values)
)
def test_any_values_give_a_config_or_a_checkpoint_error(changes):
    try:
        config = model_config_from_dict({**PUBLISHED, **changes}, OFFSET)
    except CheckpointError:
        return
    assert config.num_codes > 0 and config.num_heads % config.num_kv_heads == 0 and config.head_dim % 2 == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b"\xff{}", "not UTF-8"),
        (b"[1]", "expected a JSON object"),
        (b'{"hidden_size": 1, "hidden_size": 2}', "'hidden_size' occurs twice"),
        (b'{"rope_theta": NaN}', "NaN"),
        (b'{"unused": -1e999}', "-1e999 is larger"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b" " * (65 << 20), "larger than"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_file_is_refused_by_name(tmp_path, content, reason):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"config.json: .*{reason}"):
        read_model_config(tmp_path / "config.json", 10)


def test_config_truncated_anywhere_is_refused(tmp_path):
    whole = json.dumps(PUBLISHED)
    for length in range(len(whole)):
        (tmp_path / "config.json").write_text(whole[:length])
        with pytest.raises(CheckpointError, match="config.json"):
            read_model_config(tmp_path / "config.json", OFFSET)


# simplear.json


def test_folder_without_the_file_gets_simplears_published_values(tmp_path):
    defaults = read_generation_defaults(tmp_path)
    assert defaults == GenerationDefaults()
    assert (defaults.prompt_begin, defaults.prompt_prefix, defaults.prompt_end) == (
        "<|t2i|>",
        "A highly realistic image of ",
        "<|soi|>",
    )
    assert defaults.negative_prompt.startswith("An image of aerial view, overexposed, low quality, deformation, a poor")
    assert (defaults.guidance_scale, defaults.height, defaults.width, defaults.top_k) == (6.0, 1024, 1024, None)


def test_every_key_but_format_may_be_left_out(tmp_path):
    (tmp_path / "simplear.json").write_text('{"format": 1, "height": 128, "prompt_prefix": ""}')
    assert read_generation_defaults(tmp_path) == GenerationDefaults(height=128, prompt_prefix="")


def test_written_defaults_are_read_back(tmp_path):
    defaults = GenerationDefaults(
        prompt_prefix="名 ", negative_prompt="", guidance_scale=0.0, height=96, width=32, top_k=5, compression=8
    )
    write_generation_defaults(tmp_path, defaults)
    assert read_generation_defaults(tmp_path) == defaults


@pytest.mark.parametrize(
    "values",
    [
        {}, {"format": 2}, {"format": "1"}, {"format": True}, {"format": 1, "hieght": 128},
        {"format": 1, "height": 100}, {"format": 1, "height": 0}, {"format": 1, "width": "128"},
        {"format": 1, "guidance_scale": -1}, {"format": 1, "guidance_scale": "3"}, {"format": 1, "guidance_scale": 1e9},
        {"format": 1, "top_k": 0}, {"format": 1, "top_k": 1.5}, {"format": 1, "compression": 0},
        {"format": 1, "prompt_prefix": None}, {"format": 1, "negative_prompt": "\ud800"},
    ],
)  # fmt: skip
def test_unusable_defaults_are_refused(values):
    with pytest.raises(CheckpointError, match="simplear.json"):
        generation_defaults_from_dict(values)
