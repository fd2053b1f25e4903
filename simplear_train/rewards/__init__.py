"""What judges pictures during reinforcement: the protocol of a reward, sums of several, and where they are found.

A reward is any object with `score(prompts, images) -> float32 [N]`: prompts are captions as a user would type them
(no control tokens, no style prefix), images are uint8 [N, H, W, 3], higher is better. NaN says "I cannot tell"; that
picture is then left out of its group. An exception says "I am broken"; the step's pictures then all lack that score.
Both are counted and neither is ever replaced by a number. A config names a reward by a short name or by
"module:class"; what else stands in its table goes to the constructor.

    [[rewards]]
    name = "emoji_clip"                 # or "my_package.my_module:MyReward"
    weight = 1.0
    options = { folder = "reward" }

Nothing here knows a particular reward: each lives in a module of its own and is imported when a config names it.
"""

import importlib
import inspect
import logging
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from simplear_engine.errors import InvalidRequestError, SimplearError

# Short name -> "module:class"; add a line beside the module that you add.
REWARDS: dict[str, str] = {
    "emoji_clip": "simplear_train.rewards.emoji_clip:EmojiClipReward",
    "clip": "simplear_train.rewards.clip:ClipReward",
    "open_clip": "simplear_train.rewards.clip:OpenClipReward",
    "hpsv2": "simplear_train.rewards.clip:HpsV2Reward",
    "aesthetic": "simplear_train.rewards.aesthetic:AestheticReward",
    "ocr": "simplear_train.rewards.ocr:OcrReward",
    "detector": "simplear_train.rewards.object_count:DetectorReward",
    "http": "simplear_train.rewards.http_service:HttpReward",
    "named_colour": "simplear_train.rewards.named_colour:NamedColourReward",
}

_log = logging.getLogger(__name__)


class Reward(Protocol):
    def score(self, prompts: list[str], images: np.ndarray) -> np.ndarray:
        """float32 [N] for N prompts and uint8 [N, H, W, 3]; NaN where there is no answer."""


class RewardError(SimplearError, RuntimeError):
    """A reward cannot be made, or failed for so many steps in a row that training on would be pointless."""

    kind = "reward"


@dataclass(frozen=True)
class RewardConfig:
    """One [[rewards]] table."""

    name: str
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)


def make_reward(config: RewardConfig) -> Reward:
    path = REWARDS.get(config.name, config.name)
    module_name, colon, class_name = path.partition(":")
    if not colon:
        known = ", ".join(sorted(REWARDS)) or "none yet"
        raise InvalidRequestError(f'rewards: expected one of {known}, or "module:class", got {config.name!r}')
    try:
        make = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise RewardError(f"reward {config.name!r}: {path} cannot be loaded: {error}") from error
    try:
        inspect.signature(make).bind(**config.options)
    except TypeError as error:
        raise InvalidRequestError(f"rewards: options of {config.name}: {error}") from None
    return make(**config.options)


@dataclass(frozen=True)
class Scores:
    """total: float32 [N], NaN where any part is; parts: each reward's own; num_nan: pictures without a total;
    failures: message of each reward that raised."""

    total: np.ndarray
    parts: dict[str, np.ndarray]
    num_nan: int
    failures: dict[str, str]


class WeightedRewards:
    """The weighted sum of several rewards.

    A picture that one of them cannot judge has no total: the sum of the others would be a number on another scale.
    A reward that raises gives NaN to the whole step; after `max_failures` such steps in a row RewardError ends the run.
    """

    def __init__(self, rewards: dict[str, tuple[Reward, float]], max_failures: int = 3):
        if not rewards:
            raise InvalidRequestError("rewards: expected at least one, got none")
        self.rewards = rewards
        self.max_failures = max_failures
        self.failures_in_a_row = dict.fromkeys(rewards, 0)

    @classmethod
    def from_configs(cls, configs: tuple[RewardConfig, ...], max_failures: int = 3) -> "WeightedRewards":
        names = [config.name for config in configs]
        if len(set(names)) != len(names):
            raise InvalidRequestError(f"rewards: expected each name once, got {', '.join(names)}")
        return cls({config.name: (make_reward(config), config.weight) for config in configs}, max_failures)

    def score(self, prompts: list[str], images: np.ndarray) -> Scores:
        total = np.zeros(len(prompts), np.float32)
        parts, failures = {}, {}
        for name, (reward, weight) in self.rewards.items():
            try:
                values = np.asarray(reward.score(prompts, images), np.float32)
                if values.shape != total.shape:
                    raise RewardError(f"expected scores of shape [{len(prompts)}], got {list(values.shape)}")
                self.failures_in_a_row[name] = 0
            except Exception as error:
                values = np.full(len(prompts), np.nan, np.float32)
                failures[name] = f"{type(error).__name__}: {error}"
                self.failures_in_a_row[name] += 1
                _log.warning("reward %s failed (%d in a row): %s", name, self.failures_in_a_row[name], failures[name])
                if self.failures_in_a_row[name] >= self.max_failures:
                    raise RewardError(
                        f"reward {name!r} failed {self.max_failures} steps in a row, last with {failures[name]}"
                    ) from error
            # An infinite score is as little of a judgement as none.
            values = np.where(np.isfinite(values), values, np.float32(np.nan))
            parts[name] = values
            total += np.float32(weight) * values
        return Scores(total, parts, int(np.isnan(total).sum()), failures)
