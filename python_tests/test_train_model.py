"""The companion's language model is the one that other libraries load."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")

from simplear_train.model import Qwen2Config, Qwen2Model, load_hf_folder, save_hf_folder
from simplear_train.pretrain import TokenData, losses
from simplear_train.text_tokenizer import CONTROL_TOKENS, prompt_ids, train_text_tokenizer

CAPTIONS = ["a red apple", "two dogs", "a cat and a dog", "a blue car left of a tree"]


def small_model(seed: int = 0) -> Qwen2Model:
    torch.manual_seed(seed)
    model = Qwen2Model(Qwen2Config(300, 48, 80, 3, 6, 2))
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, std=0.2 if p.ndim > 1 else 0.5)
    return model


def test_saved_folder_gives_the_same_logits_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = small_model()
    save_hf_folder(model, tmp_path, torch.float32)
    theirs, report = transformers.Qwen2ForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.randint(0, 300, (2, 37))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_saved_folder_comes_back_equal(tmp_path):
    model = small_model()
    save_hf_folder(model, tmp_path, torch.float32)
    again = load_hf_folder(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True


def test_control_tokens_come_last_in_simplear_order():
    tokenizer = train_text_tokenizer(CAPTIONS, 280)
    size = tokenizer.get_vocab_size()
    assert [tokenizer.token_to_id(t) for t in CONTROL_TOKENS] == list(range(size - 7, size))
    assert prompt_ids(tokenizer, "") == [size - 7, size - 5]


@pytest.mark.parametrize("text", ["a red apple", "naïve café ☕", "猫", "tabs\tand\nlines", "  two  blanks "])
def test_any_text_survives_the_byte_level_tokenizer(text):
    tokenizer = train_text_tokenizer(CAPTIONS, 280)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_padding_and_batch_company_do_not_change_a_sample_loss():
    tokenizer = train_text_tokenizer(CAPTIONS, 280)
    offset = tokenizer.get_vocab_size()
    torch.manual_seed(0)
    model = Qwen2Model(Qwen2Config(offset + 13, 32, 48, 2, 2, 1))
    codes = np.random.default_rng(0).integers(0, 13, (4, 9))
    data = TokenData(codes, [[c] for c in CAPTIONS], tokenizer, 0.0, 0)
    samples = [(data.prompt(i, 0), data.codes[i]) for i in range(4)]
    with torch.no_grad():
        together = losses(model, *data.pad(samples), 9, offset)[0]
        alone = torch.stack([losses(model, *data.pad([s]), 9, offset)[0] for s in samples]).mean()
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_every_process_sees_its_own_part_of_each_batch():
    from simplear_train.parallel import Share

    tokenizer = train_text_tokenizer(CAPTIONS, 280)
    codes = np.arange(64)[:, None]
    data = TokenData(codes, [[CAPTIONS[i % 4]] for i in range(64)], tokenizer, 0.1, 0)
    for step in range(8):
        parts = [data.batch(step, 16, Share(rank, 2))[0] for rank in range(2)]
        seen = [int(row[row >= tokenizer.get_vocab_size()][0]) for part in parts for row in part]
        whole = data.batch(step, 16)[0]
        assert sorted(seen) == sorted(int(row[row >= tokenizer.get_vocab_size()][0]) for row in whole)
        assert len(set(seen)) == 16
