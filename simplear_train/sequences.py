"""Samples as token sequences, and sequences as batches.

A sample is  <|t2i|> [style prefix] caption <|soi|> code_0 ... code_{n-1}  with code c at id c + visual offset. A share of
the samples loses prefix and caption, which trains the unconditional branch that guidance needs.

What a step sees is a function of (seed, step) alone: nothing has to be stored to resume, and every process works out
its own part. Batches are cut from windows of shuffled samples that were sorted by length, so that little is padded;
with packing, several samples share a row and do not see each other.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from simplear_engine.config import GenerationDefaults
from simplear_engine.errors import InvalidRequestError
from simplear_engine.text import TextTokenizer

from .config_file import SHARE, check_values
from .mixture import choose
from .parallel import ALONE, Share
from .token_shards import TokenSet

WINDOW_BATCHES = 16  # batches that are sorted by length together
NONE, TEXT, VISUAL = 0, 1, 2  # what a token is to the loss
PAD = 0  # stands after everything else: never attended to, never a target

# SimpleAR's, drawn uniformly; each ends with a blank and the caption follows directly.
SIMPLEAR_STYLES = (
    "A detailed digital painting of ", "A highly realistic image of ", "An abstract representation of ",
    "A fantasy illustration featuring ", "A photorealistic depiction of ", "A vibrant, colorful scene of ",
    "A surreal dreamscape of ", "A futuristic cityscape with ", "An epic landscape showcasing ",
    "A minimalistic black and white sketch of ", "A cinematic view of ", "An ethereal depiction of ",
    "A hyper-realistic portrayal of ", "An imaginative interpretation of ", "A whimsical illustration of ",
    "A magical world featuring ", "An iconic scene from ", "A steampunk-inspired version of ",
    "A vintage-style artwork of ", "A high-tech sci-fi scene with ",
)  # fmt: skip


@dataclass(frozen=True)
class CaptionConfig:
    """wording: "any" draws one of a sample's wordings, "long" takes the second line where there are several and else the
    whole, "short_or_long" is SimpleAR's rule: any line where there are several, else half of the time only the first
    sentence. styles: "none", or SimpleAR's twenty prefixes. drop: share of samples without any words."""

    wording: Literal["any", "long", "short_or_long"] = "any"
    styles: Literal["none", "simplear"] = "none"
    drop: float = 0.1

    def __post_init__(self):
        check_values(self, "data.captions", drop=SHARE)


@dataclass(frozen=True)
class Sequence:
    prompt: tuple[int, ...]  # control tokens included
    codes: np.ndarray  # int32 [n], from 0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.codes)


@dataclass(frozen=True)
class Batch:
    """ids int64 [B, T]; kind uint8 [B, T]: what each token is as a target; segments int32 [B, T] where rows are packed."""

    ids: Tensor
    kind: Tensor
    segments: Tensor | None

    def to(self, device) -> "Batch":
        return Batch(
            self.ids.to(device), self.kind.to(device), None if self.segments is None else self.segments.to(device)
        )


class Captioner:
    """Words to prompt ids, with all that training varies about them."""

    def __init__(self, text: TextTokenizer, defaults: GenerationDefaults, config: CaptionConfig):
        self.text, self.config = text, config
        self.begin, self.end = text.control_id(defaults.prompt_begin), text.control_id(defaults.prompt_end)

    def prompt(self, wordings: list[str], rng: np.random.Generator) -> tuple[int, ...]:
        if rng.random() < self.config.drop:
            return self.begin, self.end
        words = self.choose(wordings, rng)
        if self.config.styles == "simplear":
            words = SIMPLEAR_STYLES[rng.integers(len(SIMPLEAR_STYLES))] + words
        return self.wrap(words)

    def wrap(self, words: str) -> tuple[int, ...]:
        return (self.begin, *(self.text.encode_text(words) if words else ()), self.end)

    def longest(self, wordings: list[str]) -> int:
        """Tokens of the longest prompt that they may become."""
        if self.config.wording == "long":
            wordings = wordings[1:2] or wordings
        styles = SIMPLEAR_STYLES if self.config.styles == "simplear" else ("",)
        return max(len(self.wrap(style + words)) for style in styles for words in wordings)

    def choose(self, wordings: list[str], rng: np.random.Generator) -> str:
        if self.config.wording == "any":
            return wordings[rng.integers(len(wordings))]
        if len(wordings) > 1:
            return wordings[1] if self.config.wording == "long" else wordings[rng.integers(len(wordings))]
        whole = wordings[0]
        if self.config.wording == "short_or_long" and "." in whole and rng.random() < 0.5:
            return whole[: whole.index(".") + 1]
        return whole


@dataclass(frozen=True)
class Source:
    """Chosen samples of a token set."""

    tokens: TokenSet
    chosen: np.ndarray  # int64, sample numbers; one may stand there several times

    @classmethod
    def select(cls, tokens: TokenSet, strategy: str, seed: int) -> "Source":
        return cls(tokens, choose(strategy, len(tokens), seed))

    def check_lengths(self, captioner: Captioner, positions: int) -> None:
        """InvalidRequestError where a sample is longer than the model may ever draw; training alone would not notice.
        Captions are read only of samples that may be so long."""
        around = 2 + (max(map(len, SIMPLEAR_STYLES)) if captioner.config.styles == "simplear" else 0)
        is_doubtful = self.tokens.num_tokens_at_most() + around > positions
        for i in np.unique(self.chosen[is_doubtful[self.chosen]]):
            length = captioner.longest(self.tokens.wordings(i)) + self.tokens.codes(i).size
            if length > positions:
                raise InvalidRequestError(
                    f"{self.tokens.folder}: sample {i}: expected at most the model's {positions} positions, "
                    f"got {length} tokens"
                )


class SequenceData:
    """An endless stream of batches from one or several sources, mixed in proportion to their sizes."""

    def __init__(self, sources: list[Source], captioner: Captioner, offset: int, batch_size: int, seed: int):
        self.sources, self.captioner, self.offset = sources, captioner, offset
        self.batch_size, self.seed = batch_size, seed
        self._ends = np.cumsum([len(source.chosen) for source in sources])
        self.batches_per_epoch = len(self) // batch_size
        if not self.batches_per_epoch:
            raise InvalidRequestError(f"data: expected at least one batch of {batch_size} samples, got {len(self)}")
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._window = lru_cache(maxsize=2)(self._draw_window)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def sequence(self, i: int, rng: np.random.Generator) -> Sequence:
        source = int(np.searchsorted(self._ends, i, side="right"))
        within = i - (self._ends[source] - len(self.sources[source].chosen))
        tokens, number = self.sources[source].tokens, int(self.sources[source].chosen[within])
        return Sequence(self.captioner.prompt(tokens.wordings(number), rng), tokens.codes(number).reshape(-1))

    def _draw_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self))

    def _draw_window(self, epoch: int, window: int) -> list[list[Sequence]]:
        rng = np.random.default_rng((self.seed, epoch, window))
        begin = window * WINDOW_BATCHES * self.batch_size
        end = min(begin + WINDOW_BATCHES * self.batch_size, self.batches_per_epoch * self.batch_size)
        sequences = [self.sequence(int(i), rng) for i in self._order(epoch)[begin:end]]
        sequences.sort(key=len)
        batches = [sequences[b : b + self.batch_size] for b in range(0, len(sequences), self.batch_size)]
        rng.shuffle(batches)
        return batches

    def batch(self, step: int, share: Share = ALONE) -> tuple[list[Sequence], list[Sequence]]:
        """(this process's part, the whole batch) of a step"""
        epoch, number = divmod(step, self.batches_per_epoch)
        whole = self._window(epoch, number // WINDOW_BATCHES)[number % WINDOW_BATCHES]
        # A stride, not a block: batches are sorted, and every process should get short and long prompts.
        return whole[share.rank :: share.world_size], whole


def micro_batches(sequences: list[Sequence], size: int, offset: int, pack_length: int = 0) -> list[Batch]:
    """At most `size` sequences each; with `pack_length`, rows hold as many whole sequences as fit."""
    batches = []
    for begin in range(0, len(sequences), size):
        rows = [[sequence] for sequence in sequences[begin : begin + size]]
        batches.append(lay_out(pack(rows, pack_length) if pack_length else rows, offset))
    return batches


def pack(rows: list[list[Sequence]], length: int) -> list[list[Sequence]]:
    """First fit, the longest first."""
    packed: list[list[Sequence]] = []
    room: list[int] = []
    for sequence in sorted((row[0] for row in rows), key=len, reverse=True):
        for i, free in enumerate(room):
            if len(sequence) <= free:
                break
        else:
            i = len(packed)
            packed.append([])
            room.append(max(length, len(sequence)))
        packed[i].append(sequence)
        room[i] -= len(sequence)
    return packed


def lay_out(rows: list[list[Sequence]], offset: int) -> Batch:
    length = max(sum(map(len, row)) for row in rows)
    ids = np.full((len(rows), length), PAD, np.int64)
    kind = np.zeros((len(rows), length), np.uint8)
    segments = np.full((len(rows), length), -1, np.int32)
    for i, row in enumerate(rows):
        begin = 0
        for number, sequence in enumerate(row):
            middle, end = begin + len(sequence.prompt), begin + len(sequence)
            ids[i, begin:middle] = sequence.prompt
            ids[i, middle:end] = sequence.codes + offset
            # The first token of a sample has nothing before it that could predict it.
            kind[i, begin + 1 : middle], kind[i, middle:end] = TEXT, VISUAL
            segments[i, begin:end] = number
            begin = end
    is_packed = any(len(row) > 1 for row in rows)
    return Batch(torch.from_numpy(ids), torch.from_numpy(kind), torch.from_numpy(segments) if is_packed else None)
