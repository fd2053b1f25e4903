"""The companion's language model is the one that other libraries load, and its losses are theirs."""

import json

import pytest

torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")

from simplear_engine.config import GenerationDefaults, ModelConfig
from simplear_engine.weights import weight_specs
from simplear_train.log_probs import token_log_probs
from simplear_train.model import Qwen2Model
from simplear_train.model_folder import from_folder, from_scratch, load_model
from simplear_train.text_tokenizer import CONTROL_TOKENS, train_text_tokenizer

CAPTIONS = ["a red apple", "two dogs", "a cat and a dog", "a blue car left of a tree"]
DEFAULTS = GenerationDefaults(prompt_prefix="", negative_prompt="", guidance_scale=1.5, height=32, width=32)


def small_config(offset: int = 270, num_codes: int = 30, **changes) -> ModelConfig:
    values = dict(
        hidden_size=48, intermediate_size=80, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=8, rope_theta=1e4,
        rms_norm_eps=1e-6, vocab_size=offset + num_codes, tie_word_embeddings=True, max_position_embeddings=256,
        visual_offset=offset,
    )  # fmt: skip
    return ModelConfig(**{**values, **changes})


def shaken(model: Qwen2Model) -> Qwen2Model:
    """Weights large enough that no part of the network is near the identity."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2 if p.ndim > 1 else 0.5)
    return model


def saved_folder(tmp_path, **changes):
    tokenizer = train_text_tokenizer(CAPTIONS, 280)
    folder = from_scratch(small_config(tokenizer.get_vocab_size(), **changes), tokenizer, DEFAULTS)
    shaken(folder.model)
    folder.save(tmp_path / "model", torch.float32)
    return folder, tmp_path / "model"


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_the_engines_weights(tied):
    config = small_config(tie_word_embeddings=tied, head_dim=10)
    parameters = dict(Qwen2Model(config).named_parameters())
    assert {name: tuple(p.shape) for name, p in parameters.items()} == {
        name: spec.shape for name, spec in weight_specs(config).items()
    }


def test_loss_and_gradients_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder, path = saved_folder(tmp_path)
    theirs, report = transformers.Qwen2ForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.randint(0, folder.model.config.vocab_size, (2, 37))
    targets = ids[:, 1:].flatten()

    def head(hidden, table):
        return -token_log_probs(hidden[:, :-1].flatten(0, 1), table, targets).mean()

    ours = folder.model
    ours(ids, None, head).backward()
    loss = theirs(ids, labels=ids).loss
    loss.backward()
    torch.testing.assert_close(ours(ids, None, head), loss, rtol=1e-5, atol=1e-5)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}")


def test_recomputed_layers_give_the_same_gradients():
    ids = torch.randint(0, 300, (2, 19))
    model = shaken(Qwen2Model(small_config()))
    gradients = []
    for model.recompute_layers in (False, True):
        model.zero_grad()
        model(ids).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0)


@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("chunk_logits", [1 << 24, 65])
def test_token_log_probs_are_those_of_a_softmax_with_its_gradients(monkeypatch, chunk_logits, top_k):
    import simplear_train.log_probs as module

    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk_logits)
    generator = torch.Generator().manual_seed(1)
    hidden, table = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (17, 13))
    targets = torch.randint(0, 13, (17,), generator=generator)
    weights = torch.randn(17, generator=generator, dtype=torch.float64)

    def plain(hidden, table):
        logits = hidden @ table.T
        if top_k:
            keep = torch.zeros_like(logits, dtype=torch.bool)
            keep.scatter_(1, logits.topk(top_k).indices, True).scatter_(1, targets[:, None], True)
            logits = logits.masked_fill(~keep, -torch.inf)
        return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]

    results = []
    for function in (lambda h, t: token_log_probs(h, t, targets, top_k), plain):
        h, t = hidden.clone().requires_grad_(), table.clone().requires_grad_()
        log_probs = function(h, t)
        (log_probs.double() * weights).sum().backward()
        results.append((log_probs.detach().double(), h.grad, t.grad))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_saved_folder_comes_back_equal_and_the_engine_draws_from_it(tmp_path):
    from simplear_engine import Engine

    folder, path = saved_folder(tmp_path)
    again = load_model(path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in folder.model.state_dict().items())
    assert json.loads((path / "config.json").read_text())["tie_word_embeddings"] is True
    prompt = folder.text.encode_prompt(CAPTIONS[0], folder.defaults)
    with Engine.from_pretrained(str(path), threads=1) as engine:
        image = engine.generate_from_ids(prompt, guidance_scale=1, seed=3)[0]
    assert image.tokens.shape == (2, 2)


def test_a_folder_trained_further_keeps_what_training_has_no_opinion_about(tmp_path):
    _, path = saved_folder(tmp_path)
    entry = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**entry, "use_pos_skipping": False}))
    (path / "tokenizer_config.json").write_text('{"padding_side": "right"}')
    from_folder(str(path)).save(tmp_path / "again", torch.bfloat16)
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again == {**entry, "use_pos_skipping": False, "torch_dtype": "bfloat16"}
    assert (tmp_path / "again" / "tokenizer_config.json").read_text() == '{"padding_side": "right"}'


def test_control_tokens_come_last_in_simplear_order():
    tokenizer = train_text_tokenizer(CAPTIONS, 280)
    size = tokenizer.get_vocab_size()
    assert [tokenizer.token_to_id(t) for t in CONTROL_TOKENS] == list(range(size - 7, size))


@pytest.mark.parametrize("text", ["a red apple", "naïve café ☕", "猫", "tabs\tand\nlines", "  two  blanks "])
def test_any_text_survives_the_byte_level_tokenizer(text):
    tokenizer = train_text_tokenizer(CAPTIONS, 280)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
