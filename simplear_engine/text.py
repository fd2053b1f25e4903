"""Prompts to token ids, with no way for a prompt to reach a control token.

A checkpoint's tokenizer comes as tokenizer.json or as Qwen2's vocab.json + merges.txt. Two views of it are kept: the
whole one, which counts tokens and knows the control tokens' ids, and one without added tokens, which alone ever sees
a user's text. So a prompt that spells `<|soi|>` is six characters of text and nothing else.

The `tokenizers` package is imported when the first tokenizer is loaded. Nothing here knows about weights or images.
"""

import os
from pathlib import Path

from simplear_engine.atomic_file import atomic_writer
from simplear_engine.config import GenerationDefaults
from simplear_engine.errors import CheckpointError, InvalidRequestError
from simplear_engine.strict_json import read_file_bytes, read_json_object

# How Qwen2 cuts text into words before merging bytes; part of the format, letter for letter.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


class TextTokenizer:
    """A checkpoint's text tokenizer. `len()` counts added tokens and is the id of visual code 0."""

    def __init__(self, tokenizer, source, vocab: dict[str, int] | None = None):
        """`tokenizer`: a `tokenizers.Tokenizer`, added tokens included; `source` names it in errors. `vocab`: its
        tokens but for the added ones, where the caller has them (the package takes 0.1 s to hand out Qwen2's)."""
        from tokenizers import Tokenizer

        self._source = source
        self._whole = tokenizer
        self._added = {token.content: token_id for token_id, token in tokenizer.get_added_tokens_decoder().items()}
        self._added_ids = frozenset(self._added.values())
        self._plain = Tokenizer(tokenizer.model)
        for part in ("normalizer", "pre_tokenizer"):
            if getattr(tokenizer, part) is not None:
                setattr(self._plain, part, getattr(tokenizer, part))
        self._check(tokenizer.get_vocab(with_added_tokens=False) if vocab is None else vocab)

    @classmethod
    def from_folder(cls, folder) -> "TextTokenizer":
        """Loads tokenizer.json, or else vocab.json + merges.txt and the files that list added tokens.

        Raises CheckpointError naming the file.
        """
        folder = Path(folder)
        if os.path.lexists(folder / "tokenizer.json"):
            path = folder / "tokenizer.json"
            tokenizer, vocab = _load_tokenizer_json(path)
            return cls(tokenizer, path, vocab)
        if all(os.path.lexists(folder / name) for name in ("vocab.json", "merges.txt")):
            return cls(_build_qwen2_tokenizer(folder), folder / "vocab.json")
        raise CheckpointError(
            f"{folder}: holds no text tokenizer: neither tokenizer.json nor vocab.json with merges.txt"
        )

    def __len__(self) -> int:
        return self._whole.get_vocab_size(with_added_tokens=True)

    def control_id(self, token: str) -> int:
        """The id of an added token such as `<|soi|>`. Raises CheckpointError where the tokenizer has none so named."""
        if token not in self._added:
            raise CheckpointError(f"{self._source}: has no added token {token!r}, which wraps every prompt")
        return self._added[token]

    def encode_text(self, text: str, name: str = "prompt") -> list[int]:
        """Ids of `text` alone; whatever it spells, no id is that of an added token. Raises InvalidRequestError, which
        calls the text `name`."""
        if not isinstance(text, str):
            raise InvalidRequestError(f"{name}: expected a str, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            message = f"{name}: character {error.start} is a lone surrogate (U+{code:04X}), which is not text"
            raise InvalidRequestError(message) from None
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if not self._added_ids.isdisjoint(ids):
            raise CheckpointError(f"{self._source}: its merges build an added token out of plain text")
        return ids

    def encode_prompt(self, prompt: str, defaults: GenerationDefaults) -> list[int]:
        """[begin] + prefix and prompt + [end]."""
        return self._wrap(defaults.prompt_prefix, prompt, defaults, "prompt")

    def encode_negative(self, negative_prompt: str, defaults: GenerationDefaults) -> list[int]:
        """[begin] + negative prompt + [end], without the prefix."""
        return self._wrap("", negative_prompt, defaults, "negative_prompt")

    def to_json(self) -> str:
        """The whole tokenizer as the text of a tokenizer.json."""
        return self._whole.to_str()

    def write_json(self, path) -> None:
        """Writes the whole tokenizer as a tokenizer.json."""
        with atomic_writer(path) as file:
            file.write(self.to_json().encode())

    def _wrap(self, prefix: str, prompt: str, defaults: GenerationDefaults, name: str) -> list[int]:
        if not isinstance(prompt, str):
            raise InvalidRequestError(f"{name}: expected a str, got {type(prompt).__name__}")
        begin, end = self.control_id(defaults.prompt_begin), self.control_id(defaults.prompt_end)
        return [begin, *self.encode_text(prefix + prompt, name), end]

    def _check(self, vocab: dict[str, int]) -> None:
        highest = max(max(vocab.values(), default=-1), max(self._added_ids, default=-1))
        if highest >= len(self):
            raise CheckpointError(
                f"{self._source}: {len(self)} tokens, but ids up to {highest}: they must have no gaps"
            )
        # Byte-level BPE without a byte would silently drop the characters that need it.
        model = self._whole.model
        if type(model).__name__ == "BPE" and model.unk_token is None and not model.byte_fallback:
            from tokenizers.pre_tokenizers import ByteLevel

            absent = sorted(set(ByteLevel.alphabet()) - vocab.keys() - self._added.keys())
            if absent:
                raise CheckpointError(
                    f"{self._source}: {len(absent)} of 256 bytes have no token: {''.join(absent)[:40]}"
                )


def _call_tokenizers(source, function, *arguments):
    """Calls into the `tokenizers` package, whose errors are bare Exceptions and, on a bug, panics."""
    try:
        return function(*arguments)
    except Exception as error:
        raise CheckpointError(f"{source}: not a usable tokenizer: {error}") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{source}: not a usable tokenizer: {error}") from None


def _load_tokenizer_json(path: Path):
    """The tokenizer and, where its kind of model is a dictionary, that dictionary."""
    from tokenizers import Tokenizer

    values = read_json_object(path)
    tokenizer = _call_tokenizers(path, Tokenizer.from_buffer, read_file_bytes(path))
    # The package gives an added token another id where the file's own is taken or leaves a gap, and only logs it.
    for token in values.get("added_tokens") or []:
        actual = tokenizer.token_to_id(token["content"])
        if actual != token["id"]:
            raise CheckpointError(
                f"{path}: added token {token['content']!r}: id {token['id']} cannot be had, only {actual}"
            )
    # All three are for training: a prompt is never cut or filled up, and has the same ids every time.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    vocab = values["model"].get("vocab")
    return tokenizer, vocab if isinstance(vocab, dict) else None


def _build_qwen2_tokenizer(folder: Path):
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab_path, merges_path = folder / "vocab.json", folder / "merges.txt"
    vocab = read_json_object(vocab_path)
    if not all(type(token_id) is int and 0 <= token_id < len(vocab) for token_id in vocab.values()):
        raise CheckpointError(f"{vocab_path}: expected ids 0 to {len(vocab) - 1}")
    if len(set(vocab.values())) != len(vocab):
        raise CheckpointError(f"{vocab_path}: two tokens share an id")
    model = _call_tokenizers(merges_path, models.BPE, vocab, _read_merges(merges_path))
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    for content, token_id in sorted(_read_added_tokens(folder, vocab).items(), key=lambda item: item[1]):
        tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False)])
        actual = tokenizer.token_to_id(content)
        if actual != token_id:
            raise CheckpointError(f"{folder}: added token {content!r}: id {token_id} cannot be had, only {actual}")
    return tokenizer


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = read_file_bytes(path).decode().split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 at byte {error.start}") from None
    merges = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.rstrip("\r").split(" ")
        if len(parts) != 2 or not all(parts):
            raise CheckpointError(
                f"{path}: line {number}: expected two tokens with a blank between, found {line!r:.80}"
            )
        merges.append((parts[0], parts[1]))
    return merges


def _read_optional(path: Path) -> dict:
    return read_json_object(path) if os.path.lexists(path) else {}


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can write it, which half of a surrogate pair is not for."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_added_tokens(folder: Path, vocab: dict[str, int]) -> dict[str, int]:
    """Added tokens from whichever files list them; they must not contradict each other."""
    added: dict[str, int] = {}

    def add(content, token_id, path):
        if not isinstance(content, str) or not content or not _is_unicode(content) or type(token_id) is not int:
            raise CheckpointError(f"{path}: added token {content!r:.80}: expected a name and an integer id")
        if added.setdefault(content, token_id) != token_id:
            raise CheckpointError(
                f"{path}: added token {content!r}: id {token_id}, but another file says {added[content]}"
            )

    path = folder / "tokenizer_config.json"
    decoder = _read_optional(path).get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise CheckpointError(f"{path}: added_tokens_decoder: expected an object")
    for token_id, token in decoder.items():
        content = token.get("content") if isinstance(token, dict) else None
        is_number = token_id.isascii() and token_id.isdigit() and len(token_id) < 10
        add(content, int(token_id) if is_number else token_id, path)
    path = folder / "added_tokens.json"
    for content, token_id in _read_optional(path).items():
        add(content, token_id, path)
    # This file gives no ids: names that no other file lists follow behind, in its order.
    path = folder / "special_tokens_map.json"
    next_id = max([len(vocab) - 1, *added.values()]) + 1
    for value in _read_optional(path).values():
        for token in value if isinstance(value, list) else [value]:
            content = token.get("content") if isinstance(token, dict) else token
            if content is None or (isinstance(content, str) and content in added):
                continue
            if isinstance(content, str) and content in vocab:
                add(content, vocab[content], path)
            else:
                add(content, next_id, path)
                next_id += 1
    return added
