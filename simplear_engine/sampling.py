"""A request's parameters, checked, with the checkpoint's defaults filled in.

Every fault is an InvalidRequestError that names the parameter, what was expected and what came.
"""

import math
import operator
import os
from collections.abc import Mapping, Set
from dataclasses import dataclass

from simplear_engine.config import MAX_SIDE, GenerationDefaults, ModelConfig
from simplear_engine.errors import InvalidRequestError, shown

MAX_SEED = 2**64 - 1
MAX_IMAGES = 10_000
MIN_TEMPERATURE = 1e-6  # logits divided by less are no numbers any more
MIN_TOP_P = 1e-45  # less is 0 as float32
MAX_DRAFT_WINDOW = 64
DEFAULT_DRAFT_WINDOW = 8
SPECULATIONS = (None, "auto", "jacobi", "ratio", "simplear", "neighbours")
INEXACT = ("ratio", "simplear", "neighbours")
DRAFT_SOURCES = ("context", "left", "above", "marginal", "previous")


@dataclass(frozen=True)
class Sampling:
    """height, width in pixels; grid in codes; top_k None: off; seed: of the first image; draft_window 1: no drafts;
    adapts_window: that many codes a step at most, as the engine sees fit; inexact: the mode of speculation, where it is one
    that changes pictures."""

    height: int
    width: int
    grid: tuple[int, int]
    num_images: int
    guidance_scale: float
    temperature: float
    top_k: int | None
    top_p: float
    seed: int
    draft_window: int
    adapts_window: bool
    draft_source: str | None
    inexact: str | None


def check_sampling(
    defaults: GenerationDefaults, model: ModelConfig, compression: int, *, height, width, num_images, guidance_scale,
    temperature, top_k, top_p, seed, speculation, draft_window, draft_source=None,
) -> Sampling:  # fmt: skip
    """The parameters of a call to `Engine.generate`; None stands for the checkpoint's default (seed: a random one)."""
    height = _size("height", defaults.height if height is None else height, compression)
    width = _size("width", defaults.width if width is None else width, compression)
    grid = height // compression, width // compression
    if grid[0] * grid[1] > model.max_position_embeddings:
        raise InvalidRequestError(
            f"picture of {grid[0] * grid[1]} tokens: the model knows {model.max_position_embeddings} positions; "
            "lower the resolution"
        )
    num_images = _integer("num_images", num_images, 1, MAX_IMAGES)
    seed = int.from_bytes(os.urandom(8), "little") >> 1 if seed is None else _integer("seed", seed, 0, MAX_SEED)
    if seed + num_images - 1 > MAX_SEED:
        raise InvalidRequestError(
            f"seed: expected at most {MAX_SEED - num_images + 1} for {num_images} images, got {seed}"
        )
    top_k = defaults.top_k if top_k is None else top_k
    if top_k is not None:
        top_k = _integer("top_k", top_k, 1, model.num_codes)
    top_p = _number("top_p", top_p, 0, 1)
    if top_p < MIN_TOP_P:
        raise InvalidRequestError(f"top_p: expected a number in (0, 1] that is not 0 as float32, got {top_p:g}")
    return Sampling(
        height=height,
        width=width,
        grid=grid,
        num_images=num_images,
        guidance_scale=_number(
            "guidance_scale", defaults.guidance_scale if guidance_scale is None else guidance_scale, 0, 1e6
        ),
        temperature=_temperature(temperature),
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        draft_window=_draft_window(speculation, draft_window),
        adapts_window=speculation == "auto",
        draft_source=_draft_source(speculation, draft_source),
        inexact=speculation if speculation in INEXACT else None,
    )


def _temperature(value) -> float:
    temperature = _number("temperature", value, 0, 1e6)
    if 0 < temperature < MIN_TEMPERATURE:
        raise InvalidRequestError(
            f"temperature: expected 0 (greedy) or a number of at least {MIN_TEMPERATURE:g}, got {temperature:g}"
        )
    return temperature


def _draft_window(speculation, draft_window) -> int:
    if not isinstance(speculation, (str, type(None))) or speculation not in SPECULATIONS:
        known = ", ".join(repr(name) for name in SPECULATIONS)
        raise InvalidRequestError(f"speculation: expected one of {known}, got {shown(speculation)}")
    if speculation is None:
        if draft_window is not None:
            raise InvalidRequestError(
                'draft_window: expected None where speculation is None; pass speculation="auto" or "jacobi"'
            )
        return 1
    if draft_window is None:
        return MAX_DRAFT_WINDOW if speculation == "auto" else DEFAULT_DRAFT_WINDOW
    return _integer("draft_window", draft_window, 1, MAX_DRAFT_WINDOW)


def _draft_source(speculation, draft_source) -> str | None:
    if draft_source is None:
        return None
    if not isinstance(draft_source, str) or draft_source not in DRAFT_SOURCES:
        raise InvalidRequestError(
            f"draft_source: expected one of {', '.join(DRAFT_SOURCES)}, got {shown(draft_source)}"
        )
    if speculation is None:
        raise InvalidRequestError(f"draft_source: expected None where speculation is None, got {shown(draft_source)}")
    return draft_source


def check_ids(name: str, ids, model: ModelConfig) -> list[int]:
    """Token ids as a list of int: any sequence or array of integers, also a batch of one ([1, n]), each below the
    vocabulary's size."""
    # What iterates without an order that means anything is no prompt.
    if isinstance(ids, (str, bytes, Set, Mapping)) or not hasattr(ids, "__iter__") or getattr(ids, "ndim", 1) == 0:
        raise InvalidRequestError(f"{name}: expected a sequence of token ids, got {type(ids).__name__}")
    if getattr(ids, "ndim", 1) == 2 and len(ids) == 1:
        ids = ids[0]
    return [_integer(name, i, 0, model.vocab_size - 1) for i in ids]


def _size(name: str, value, compression: int) -> int:
    value = _integer(name, value, 1, MAX_SIDE)
    if value % compression:
        low = max(compression, value // compression * compression)
        high = low + compression
        raise InvalidRequestError(f"{name}: expected a multiple of {compression}, got {value}; try {low} or {high}")
    return value


def _integer(name: str, value, low: int, high: int) -> int:
    if isinstance(value, bool):
        raise InvalidRequestError(f"{name}: expected an integer in {low}..{high}, got {shown(value)}")
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidRequestError(f"{name}: expected an integer in {low}..{high}, got {shown(value)}") from None
    if not low <= number <= high:
        raise InvalidRequestError(f"{name}: expected an integer in {low}..{high}, got {shown(number)}")
    return number


def _number(name: str, value, low: float, high: float) -> float:
    if isinstance(value, (bool, str)):
        raise InvalidRequestError(f"{name}: expected a number in [{low:g}, {high:g}], got {shown(value)}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequestError(f"{name}: expected a number in [{low:g}, {high:g}], got {shown(value)}") from None
    if not (math.isfinite(number) and low <= number <= high):
        raise InvalidRequestError(f"{name}: expected a number in [{low:g}, {high:g}], got {shown(value)}")
    return number
