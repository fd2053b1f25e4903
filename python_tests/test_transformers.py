"""Logits against transformers' Qwen2ForCausalLM, from folders that transformers itself wrote."""

import json
import shutil

import numpy as np
import pytest

from simplear_engine import Engine, UnsupportedError
from simplear_engine.testing.random_checkpoint import write_random_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NUM_TEXT, NUM_CODES = 264, 500  # codes: not a multiple of any vector length
PROMPT_LENGTH, NUM_TOKENS = 37, 61  # together 98 positions: seven KV blocks, the last one partly filled
PREFILL_CHUNK = 23  # crosses blocks and the border between prompt and codes

# query heads, KV heads, head size, tied, shard size
CONFIGS = {
    "group1_head16_tied": (4, 4, 16, True, None),
    "group2_head64_untied": (4, 2, 64, False, None),
    "group6_head16_untied_shards": (12, 2, 16, False, "50KB"),
    "group6_head128_tied": (6, 1, 128, True, None),
    "group7_head64_tied_shards": (14, 2, 64, True, "1MB"),
    "group7_head128_untied": (7, 1, 128, False, None),
    "heads_wider_than_the_hidden_size": (2, 1, 64, False, None),
}


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory):
    folder = write_random_checkpoint(tmp_path_factory.mktemp("tokenizer"), num_text_tokens=NUM_TEXT)
    return folder / "tokenizer.json"


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread():
    # The networks are so small that threads would only wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_model(name: str, intermediate_size: int = 200):
    heads, kv_heads, head_dim, tied, _ = CONFIGS[name]
    config = transformers.Qwen2Config(
        hidden_size=96 if name.startswith("heads_wider") else heads * head_dim,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=NUM_TEXT + NUM_CODES,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        attn_implementation="eager",
    )
    model = transformers.Qwen2ForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Large enough that logits spread; and no norm of ones or bias of zeros may hide a mistake.
            if parameter.ndim == 2:
                parameter.normal_(0, 1.5 * parameter.shape[1] ** -0.5, generator=generator)
            else:
                parameter.normal_(1.0 if "norm" in key else 0.0, 0.3, generator=generator)
    return model


def as_dtype(model, dtype):
    # Not model.to(dtype), which would round the table of rotary frequencies as well.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def write_folder(model, folder, tokenizer_json, shard_size=None):
    model.save_pretrained(folder, **({"max_shard_size": shard_size} if shard_size else {}))
    shutil.copy(tokenizer_json, folder / "tokenizer.json")
    config = json.loads((folder / "config.json").read_text())
    config |= {"use_pos_skipping": False, "mm_projector_type": "linear", "image_aspect_ratio": None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def random_ids(name: str):
    rng = np.random.default_rng(len(name))
    return rng.integers(0, NUM_TEXT, PROMPT_LENGTH), rng.integers(0, NUM_CODES, NUM_TOKENS)


def expected_logits(model, prompt, codes) -> np.ndarray:
    ids = torch.from_numpy(np.concatenate([prompt, codes + NUM_TEXT]))[None]
    with torch.no_grad():
        logits = model(ids).logits[0, PROMPT_LENGTH - 1 : -1, NUM_TEXT:]
    return logits.float().numpy()


def scores(folder, prompt, codes, **options) -> np.ndarray:
    with Engine.from_pretrained(folder, threads=1, prefill_chunk=PREFILL_CHUNK, max_pairs=2, **options) as engine:
        return engine.score_from_ids(prompt, codes)


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_logits_match_transformers(name, tmp_path, tokenizer_json):
    shard_size = CONFIGS[name][-1]
    model, (prompt, codes) = random_model(name, intermediate_size=201), random_ids(name)
    folder = write_folder(model, tmp_path, tokenizer_json, shard_size)
    assert len(list(folder.glob("*.safetensors"))) > 1 if shard_size else (folder / "model.safetensors").exists()
    expected = expected_logits(model, prompt, codes)
    assert expected.std() > 1, "logits this flat would hide mistakes"
    np.testing.assert_allclose(scores(folder, prompt, codes), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["group2_head64_untied", "group7_head64_tied_shards"])
def test_bfloat16_logits_are_nearer_to_float32_than_those_of_transformers(name, tmp_path, tokenizer_json):
    model, (prompt, codes) = as_dtype(random_model(name), torch.bfloat16), random_ids(name)
    folder = write_folder(model, tmp_path, tokenizer_json, CONFIGS[name][-1])
    theirs = expected_logits(model, prompt, codes)
    exact = expected_logits(as_dtype(model, torch.float32), prompt, codes)  # the same rounded weights
    ours = scores(folder, prompt, codes)
    spread = exact.std()
    error, their_error = (np.sqrt(np.mean((logits - exact) ** 2)) / spread for logits in (ours, theirs))
    assert error < their_error, "the residual stream is float32 here, bfloat16 there"
    assert error < 0.02
    assert np.abs(ours - exact).max() < 0.15 * spread


def test_bfloat16_file_computed_in_float32_matches_transformers(tmp_path, tokenizer_json):
    name = "group6_head16_untied_shards"
    model, (prompt, codes) = as_dtype(random_model(name), torch.bfloat16), random_ids(name)
    folder = write_folder(model, tmp_path, tokenizer_json)
    expected = expected_logits(as_dtype(model, torch.float32), prompt, codes)
    np.testing.assert_allclose(scores(folder, prompt, codes, dtype="float32"), expected, rtol=0, atol=1e-4)


def test_bfloat16_refuses_an_odd_number_of_columns(tmp_path, tokenizer_json):
    # Its products take columns in pairs.
    folder = write_folder(random_model("group1_head16_tied", intermediate_size=201), tmp_path, tokenizer_json)
    with pytest.raises(UnsupportedError, match='201 columns.*dtype="float32"'):
        Engine.from_pretrained(folder, dtype="bfloat16", threads=1)
