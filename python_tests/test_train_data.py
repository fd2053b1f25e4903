"""What training reads: shards that are checked, and batches that depend on nothing but seed and step."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

from simplear_engine.config import GenerationDefaults
from simplear_engine.errors import CheckpointError, InvalidRequestError
from simplear_engine.text import TextTokenizer
from simplear_train.model import Qwen2Model
from simplear_train.next_token import visual_head
from simplear_train.parallel import Share
from simplear_train.sequences import (
    CaptionConfig,
    Captioner,
    Sequence,
    SequenceData,
    Source,
    lay_out,
    micro_batches,
    pack,
)
from simplear_train.text_tokenizer import train_text_tokenizer
from simplear_train.token_shards import ShardWriter, TokenSet

CAPTIONS = ["a red apple", "two dogs", "a cat and a dog", "a blue car left of a tree"]
NUM_CODES = 300


def write_tokens(folder, count=53, samples_per_shard=20):
    """Sample i has code i first, so that it can be recognised."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, NUM_CODES, samples_per_shard) as writer:
        for i in range(count):
            codes = rng.integers(0, NUM_CODES, (2, 3))
            codes[0, 0] = i
            writer.add(codes, [CAPTIONS[i % 4], f"number {i}: naïve ☕"])
    return TokenSet(folder)


def make_data(tokens, batch_size=8, config=CaptionConfig(drop=0.2), seed=0):
    tokenizer = train_text_tokenizer(CAPTIONS, 280)
    text = TextTokenizer(tokenizer, "test")
    captioner = Captioner(text, GenerationDefaults(), config)
    return SequenceData([Source.select(tokens, "all", 0)], captioner, len(text), batch_size, seed)


def test_samples_come_back_as_they_were_written(tmp_path):
    tokens = write_tokens(tmp_path)
    assert len(tokens) == 53 and len(tokens.shards) == 3
    for i in (0, 19, 20, 52):
        assert tokens.codes(i).shape == (2, 3) and tokens.codes(i)[0, 0] == i
        assert tokens.wordings(i) == [CAPTIONS[i % 4], f"number {i}: naïve ☕"]


def test_a_damaged_shard_is_refused_by_name(tmp_path):
    write_tokens(tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="shard-00001.safetensors: damaged"):
        TokenSet(tmp_path)


def test_a_set_with_a_damaged_index_or_without_its_shards_is_refused_by_name(tmp_path):
    write_tokens(tmp_path)
    (tmp_path / "shard-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="shard-00001.safetensors: missing, although index.json lists it"):
        TokenSet(tmp_path)
    for text, message in (
        ('{"format": 1, "shards": []}', "index.json: damaged: KeyError: 'num_codes'"),
        ('{"format": 1, "num_codes": 16, "shards": [{}]}', "index.json: damaged: KeyError: 'file'"),
        ('{"format": 1, "num_codes": 16, "shards": 5}', "index.json: damaged: TypeError"),
        ('{"format": 1, "num_codes": 16, "shards": []}', "index.json: shards: expected at least one"),
    ):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            TokenSet(tmp_path)


@pytest.mark.parametrize(
    "codes, wordings, message",
    [
        (np.full((2, 2), NUM_CODES), ["x"], f"expected 0..{NUM_CODES - 1}"),
        (np.zeros((2, 2), np.float32), ["x"], "expected integers"),
        (np.zeros(4, np.int32), ["x"], r"expected integers \[h, w\]"),
        (np.zeros((2, 2), np.int32), [], "at least one string"),
    ],
)
def test_a_bad_sample_is_refused_when_it_is_written(tmp_path, codes, wordings, message):
    with pytest.raises(InvalidRequestError, match=message):
        ShardWriter(tmp_path, NUM_CODES).add(codes, wordings)


def test_batches_depend_on_seed_and_step_alone_and_an_epoch_has_every_sample_once(tmp_path):
    tokens = write_tokens(tmp_path)
    data, again = make_data(tokens), make_data(tokens)
    seen = []
    for step in range(data.batches_per_epoch):
        batch = data.batch(step)[1]
        seen += [int(s.codes[0]) for s in batch]
        assert [s.prompt for s in batch] == [s.prompt for s in again.batch(step)[1]]
    assert len(seen) == len(set(seen)) == 48
    # Asked for out of order, as a resumed run does.
    assert [s.prompt for s in again.batch(2)[1]] == [s.prompt for s in data.batch(2)[1]]
    assert [int(s.codes[0]) for s in make_data(tokens, seed=1).batch(0)[1]] != seen[:8]


def test_every_process_sees_its_own_part_of_each_batch(tmp_path):
    data = make_data(write_tokens(tmp_path))
    for step in range(4):
        parts = [data.batch(step, Share(rank, 2))[0] for rank in range(2)]
        whole = data.batch(step)[1]
        assert sorted(int(s.codes[0]) for part in parts for s in part) == sorted(int(s.codes[0]) for s in whole)
        assert len(parts[0]) == len(parts[1]) == 4


def test_the_share_of_samples_without_words_is_the_configs(tmp_path):
    data = make_data(write_tokens(tmp_path), config=CaptionConfig(drop=0.25))
    prompts = [s.prompt for step in range(200) for s in data.batch(step)[1]]
    assert abs(np.mean([len(p) == 2 for p in prompts]) - 0.25) < 0.04


def test_captions_are_chosen_by_simplears_rule():
    text = TextTokenizer(train_text_tokenizer(CAPTIONS, 280), "test")
    rng = np.random.default_rng(0)

    def drawn(config, wordings):
        captioner = Captioner(text, GenerationDefaults(), config)
        return {captioner.choose(wordings, rng) for _ in range(60)}

    one, several = ["First one. Second one."], ["short", "long", "other"]
    assert drawn(CaptionConfig("long"), one) == {one[0]} and drawn(CaptionConfig("long"), several) == {"long"}
    assert drawn(CaptionConfig("short_or_long"), one) == {one[0], "First one."}
    assert drawn(CaptionConfig("short_or_long"), several) == set(several)
    captioner = Captioner(text, GenerationDefaults(), CaptionConfig(styles="simplear", drop=0))
    prompts = {captioner.prompt(["a cat"], rng) for _ in range(400)}
    assert len(prompts) == 20 and text.encode_prompt("a cat", GenerationDefaults()) in [list(p) for p in prompts]


@pytest.mark.parametrize(
    "strategy, expected", [("all", 53), ("first:7", 7), ("end:10%", 5), ("random:9", 9), ("repeat:2", 106)]
)
def test_mixtures_choose_samples_by_simplears_grammar(tmp_path, strategy, expected):
    source = Source.select(write_tokens(tmp_path), strategy, 0)
    assert len(source.chosen) == expected
    if strategy.startswith("end"):
        assert source.chosen[-1] == 52
    if strategy.startswith("random"):
        assert len(set(source.chosen)) == 9


def test_an_unknown_sampling_is_an_error(tmp_path):
    with pytest.raises(InvalidRequestError, match="expected all, first:N"):
        Source.select(write_tokens(tmp_path), "some:3", 0)
    with pytest.raises(InvalidRequestError, match="expected repeat:N, N a number of times"):
        Source.select(TokenSet(tmp_path), "repeat:10%", 0)
    for amount in ("inf%", "nan%", "-5%", "1e999%"):
        with pytest.raises(InvalidRequestError, match="sampling: "):
            Source.select(TokenSet(tmp_path), f"first:{amount}", 0)


def test_packed_padded_and_single_samples_have_the_same_loss():
    from test_train_model import shaken, small_config

    model = shaken(Qwen2Model(small_config(270, NUM_CODES)))
    rng = np.random.default_rng(0)
    sequences = [
        Sequence((263, *rng.integers(0, 263, n).tolist(), 265), rng.integers(0, NUM_CODES, 6).astype(np.int32))
        for n in (3, 11, 0, 7, 5)
    ]
    assert len(pack([[s] for s in sequences], 40)) == 2

    def total(batches):
        return sum(sum(lp.sum() for lp in model(b.ids, b.segments, visual_head(b, 270, "visual"))) for b in batches)

    with torch.no_grad():
        alone = total([lay_out([[s]], 270) for s in sequences])
        torch.testing.assert_close(total(micro_batches(sequences, 5, 270)), alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(total(micro_batches(sequences, 5, 270, pack_length=40)), alone, rtol=1e-5, atol=1e-5)
