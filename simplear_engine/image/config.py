"""What shape an image tokenizer has: the numbers that fix every tensor of a Cosmos-type network.

Two families share one description. DV comes from a video network whose convolutions are pairs (spatial, then
temporal); DI is the plain image network. Keys that do not change the single-image network (dropout, z_factor, ...)
are ignored. Nothing in this file reads files or touches weights.
"""

import math
from dataclasses import dataclass

from simplear_engine.errors import CheckpointError
from simplear_engine.strict_json import parse_json_object

PUBLISHED_LEVELS = (8, 8, 8, 5, 5, 5)

# Far above any real tokenizer, low enough that a hostile configuration cannot make us build long lists.
_MAX_CHANNELS = 16384
_MAX_LEVELS = 8
_MAX_RES_BLOCKS = 32
_MAX_CODES = 1 << 24  # indices must stay exact in float32 sums


@dataclass(frozen=True)
class TokenizerConfig:
    name: str  # "DV" or "DI"
    channels: int
    channels_mult: tuple[int, ...]
    num_res_blocks: int  # of the encoder; the decoder has one more
    patch_size: int
    spatial_compression: int
    z_channels: int
    embedding_dim: int
    levels: tuple[int, ...]
    temporal_compression: int = 8  # DV only
    num_groups: int = 32  # of the norms; always 1 in DV, whatever its file says

    @property
    def is_video(self) -> bool:
        return self.name == "DV"

    @property
    def level_channels(self) -> tuple[int, ...]:
        return tuple(self.channels * m for m in self.channels_mult)

    @property
    def num_patch_steps(self) -> int:
        return int(math.log2(self.patch_size))

    @property
    def patch_channels(self) -> int:
        """Channels of the network's image side as the files store them: 3 colours x Haar bands."""
        return 3 * self.patch_size ** (3 if self.is_video else 2)

    @property
    def num_spatial_steps(self) -> int:
        return int(math.log2(self.spatial_compression)) - self.num_patch_steps

    @property
    def num_temporal_steps(self) -> int:
        return int(math.log2(self.temporal_compression)) - self.num_patch_steps if self.is_video else 0

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    def to_dict(self) -> dict:
        fields = dict(self.__dict__, channels_mult=list(self.channels_mult), levels=list(self.levels))
        fields |= {"patch_method": "haar", "resolution": 1024, "attn_resolutions": [], "in_channels": 3}
        fields |= {"out_channels": 3, "quantizer": "FSQ", "legacy_mode": False}
        return fields

    @classmethod
    def from_json(cls, text: str, where: str) -> "TokenizerConfig":
        return cls.from_dict(parse_json_object(text.encode(), f"{where}: config"), where)

    @classmethod
    def from_dict(cls, fields: dict, where: str) -> "TokenizerConfig":
        """Checked configuration; every problem found is listed in one CheckpointError that starts with `where`."""
        reader = _Reader(fields)
        name = fields.get("name")
        if name not in ("DV", "DI"):
            reader.problems.append(f"name: expected DV or DI, got {name!r}")
        mult = reader.numbers("channels_mult", 1, 64, _MAX_LEVELS)
        levels = reader.numbers("levels", 2, 1 << 16, 16, default=PUBLISHED_LEVELS)
        config = cls(
            name=name,
            channels=reader.number("channels", 1, _MAX_CHANNELS),
            channels_mult=mult,
            num_res_blocks=reader.number("num_res_blocks", 1, _MAX_RES_BLOCKS),
            patch_size=reader.power_of_two("patch_size", 1, 16),
            spatial_compression=reader.power_of_two("spatial_compression", 1, 256),
            z_channels=reader.number("z_channels", 1, _MAX_CHANNELS),
            embedding_dim=reader.number("embedding_dim", 1, 16, default=len(levels)),
            levels=levels,
            temporal_compression=reader.power_of_two("temporal_compression", 1, 256, default=8),
            num_groups=1 if name == "DV" else reader.number("num_groups", 1, _MAX_CHANNELS, default=32),
        )
        for key, only in (
            ("patch_method", "haar"),
            ("quantizer", "FSQ"),
            ("legacy_mode", False),
            ("in_channels", 3),
            ("out_channels", 3),
        ):
            if fields.get(key, only) != only:
                reader.problems.append(f"{key}: only {only!r} is supported, got {fields[key]!r}")
        if not reader.problems:
            reader.problems += _contradictions(config, fields)
        if reader.problems:
            raise CheckpointError(f"{where}: config: " + "; ".join(reader.problems))
        return config


def _contradictions(config: TokenizerConfig, fields: dict) -> list[str]:
    problems = []
    if len(config.levels) != config.embedding_dim:
        problems.append(f"levels: expected embedding_dim = {config.embedding_dim} numbers, got {len(config.levels)}")
    if config.num_codes > _MAX_CODES:
        problems.append(f"levels: {config.num_codes} codes, at most {_MAX_CODES} are supported")
    if max(config.level_channels) > _MAX_CHANNELS:
        problems.append(f"channels x channels_mult: at most {_MAX_CHANNELS}, got {max(config.level_channels)}")
    last = len(config.channels_mult) - 1
    steps = config.num_spatial_steps
    # The video network resamples between all levels; the image network may stop earlier.
    if not 0 <= steps <= last or (config.is_video and steps != last):
        problems.append(
            f"spatial_compression {config.spatial_compression} with patch_size {config.patch_size} needs "
            f"{steps} resamplings, channels_mult allows {last}"
        )
    if config.is_video and not 0 <= config.num_temporal_steps < max(steps, 1):
        problems.append(
            f"temporal_compression {config.temporal_compression} with patch_size {config.patch_size}: "
            f"unsupported with {steps} spatial resamplings"
        )
    if not config.is_video:
        for channels in (config.channels, *config.level_channels):
            if channels % config.num_groups:
                problems.append(f"num_groups {config.num_groups} does not divide {channels} channels")
                break
    attention = fields.get("attn_resolutions") or []
    first = fields.get("resolution") or 1024
    if not isinstance(attention, list) or type(first) is not int or first < 1:
        return problems + ["attn_resolutions: expected a list, and resolution a positive number"]
    inside = {first // config.patch_size >> level for level in range(last + 1)}.intersection(
        a for a in attention if type(a) is int
    )
    if inside:
        problems.append(f"attn_resolutions: attention inside the levels (at {sorted(inside)}) is not supported")
    return problems


class _Reader:
    """Typed access to the dictionary that collects problems instead of stopping at the first."""

    def __init__(self, fields: dict):
        self.fields = fields
        self.problems: list[str] = []

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.fields.get(key, default)
        if type(value) is int and low <= value <= high:
            return value
        self.problems.append(f"{key}: expected a whole number in {low}..{high}, got {_short(value)}")
        return low

    def power_of_two(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.number(key, low, high, default)
        if value & (value - 1):
            self.problems.append(f"{key}: expected a power of two, got {value}")
            return 1
        return value

    def numbers(self, key: str, low: int, high: int, most: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        value = self.fields.get(key, list(default))
        if (
            isinstance(value, list)
            and 1 <= len(value) <= most
            and all(type(v) is int and low <= v <= high for v in value)
        ):
            return tuple(value)
        self.problems.append(f"{key}: expected 1..{most} whole numbers in {low}..{high}, got {_short(value)}")
        return (low,)


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
