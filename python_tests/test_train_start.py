"""Where a run may start from: a text model whose vocabulary grows, and folders that draw already."""

import json

import pytest

torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

from simplear_engine import Engine
from simplear_engine.config import GenerationDefaults
from simplear_engine.errors import CheckpointError, InvalidRequestError
from simplear_train.model_folder import from_folder, from_qwen
from simplear_train.text_tokenizer import CONTROL_TOKENS, train_text_tokenizer

NUM_CODES = 40
DEFAULTS = GenerationDefaults(prompt_prefix="", negative_prompt="", guidance_scale=1.5, height=32, width=32)


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory):
    """A text model as Qwen2.5 is published, only small: its table has more rows than its tokenizer has tokens."""
    folder = tmp_path_factory.mktemp("qwen")
    trained = train_text_tokenizer(["a red apple", "two dogs and a cat"], 290)
    values = json.loads(trained.to_str())
    number = trained.get_vocab_size() - len(CONTROL_TOKENS)
    values["added_tokens"] = [
        {**values["added_tokens"][0], "id": number + i, "content": name}
        for i, name in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    ]
    (folder / "tokenizer.json").write_text(json.dumps(values))
    (folder / "vocab.json").write_text(json.dumps(values["model"]["vocab"]))
    (folder / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in values["model"]["merges"]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}')
    config = transformers.Qwen2Config(
        vocab_size=number + 3 + 20, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, rope_theta=1e6, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    return folder


def test_a_text_models_vocabulary_grows_by_control_tokens_and_codes_that_start_as_the_mean(qwen_folder, tmp_path):
    folder = from_qwen(str(qwen_folder), NUM_CODES, DEFAULTS)
    before = transformers.Qwen2ForCausalLM.from_pretrained(qwen_folder).get_input_embeddings().weight.detach()
    num_text = len(transformers.AutoTokenizer.from_pretrained(qwen_folder))
    table = folder.model.head_table.detach()
    assert len(table) == num_text + 7 + NUM_CODES and folder.model.config.visual_offset == num_text + 7
    torch.testing.assert_close(table[:num_text], before[:num_text], rtol=0, atol=0)
    torch.testing.assert_close(table[num_text:], before[:num_text].mean(0).expand(7 + NUM_CODES, -1))


def test_the_grown_folder_is_served_by_the_engine_and_by_transformers(qwen_folder, tmp_path):
    folder = from_qwen(str(qwen_folder), NUM_CODES, DEFAULTS)
    folder.save(tmp_path / "grown", torch.float32)
    theirs, report = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / "grown", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    ids = folder.text.encode_prompt("two dogs", folder.defaults)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "grown")
    assert tokenizer("<|t2i|>two dogs<|soi|>")["input_ids"] == ids
    assert len(tokenizer) == folder.model.config.visual_offset
    ids = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(folder.model(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)
    # A rope_theta that transformers nests away would show here.
    assert folder.model.config.rope_theta == 1e6
    with Engine.from_pretrained(str(tmp_path / "grown"), threads=1) as engine:
        assert engine.generate_from_ids(ids[0].tolist(), guidance_scale=1, seed=0)[0].tokens.max() < NUM_CODES


def test_simplears_loader_finds_its_files(qwen_folder, tmp_path):
    """It reads vocab.json and merges.txt, takes the offset from the tokenizer's length and pads on the right."""
    folder = from_qwen(str(qwen_folder), NUM_CODES, DEFAULTS)
    folder.save(tmp_path / "grown", torch.bfloat16)
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "grown" / name).exists()
    (tmp_path / "grown" / "tokenizer.json").unlink()
    again = from_folder(str(tmp_path / "grown"))
    assert again.text.encode_prompt("two dogs", DEFAULTS) == folder.text.encode_prompt("two dogs", DEFAULTS)
    assert "repetition_penalty" not in json.loads((tmp_path / "grown" / "generation_config.json").read_text())


def test_an_image_tokenizer_that_is_not_there_is_missed_at_the_start(tiny_checkpoint):
    with pytest.raises(InvalidRequestError, match="image_tokenizer: expected a folder.*no/such/vq"):
        from_folder(str(tiny_checkpoint), "no/such/vq")


def test_a_folder_that_draws_already_is_not_grown_again(qwen_folder, tmp_path):
    from_qwen(str(qwen_folder), NUM_CODES, DEFAULTS).save(tmp_path / "grown", torch.float32)
    with pytest.raises(CheckpointError, match="already has some of"):
        from_qwen(str(tmp_path / "grown"), NUM_CODES, DEFAULTS)
