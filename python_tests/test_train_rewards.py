"""Rewards are summed, and what cannot be judged is counted and never turned into a number."""

import numpy as np
import pytest

from simplear_engine.errors import InvalidRequestError
from simplear_train.rewards import RewardConfig, RewardError, WeightedRewards, make_reward

PROMPTS = ["two dogs", "a taxi", "four tigers"]
IMAGES = np.zeros((3, 8, 8, 3), np.uint8)


class Constant:
    def __init__(self, values):
        self.values = values

    def score(self, prompts, images):
        if isinstance(self.values, Exception):
            raise self.values
        return np.asarray(self.values, np.float32)


class Length:
    """Longer prompts are better."""

    def score(self, prompts, images):
        return np.array([len(p) for p in prompts], np.float32)


def test_rewards_add_up_with_their_weights_and_see_the_prompts_letter_for_letter():
    rewards = WeightedRewards({"length": (Length(), 2.0), "constant": (Constant([1, 2, 3]), -1.0)})
    np.testing.assert_array_equal(rewards.score(PROMPTS, IMAGES).total, [15, 10, 19])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_picture_that_one_reward_cannot_judge_has_no_total_and_is_counted(bad):
    scores = WeightedRewards({"a": (Length(), 1.0), "b": (Constant([1, bad, 3]), 1.0)}).score(PROMPTS, IMAGES)
    assert np.isnan(scores.total).tolist() == [False, True, False]
    assert scores.num_nan == 1 and not scores.failures


def test_a_dead_service_is_reported_and_ends_the_run_when_it_stays_dead():
    dead = Constant(ConnectionError("nobody listens"))
    rewards = WeightedRewards({"service": (dead, 1.0)}, max_failures=3)
    first = rewards.score(PROMPTS, IMAGES)
    assert first.num_nan == 3 and "nobody listens" in first.failures["service"]
    dead.values = [1, 2, 3]
    assert rewards.score(PROMPTS, IMAGES).num_nan == 0
    dead.values = ConnectionError("gone again")
    rewards.score(PROMPTS, IMAGES)
    rewards.score(PROMPTS, IMAGES)
    with pytest.raises(RewardError, match="service.*3 steps in a row.*gone again"):
        rewards.score(PROMPTS, IMAGES)


def test_a_wrong_number_of_scores_is_a_failure_and_not_broadcast():
    scores = WeightedRewards({"a": (Constant([1.0]), 1.0)}).score(PROMPTS, IMAGES)
    assert scores.num_nan == 3 and "[3], got [1]" in scores.failures["a"]


def test_a_reward_is_found_by_module_and_class_with_its_options():
    reward = make_reward(RewardConfig(f"{__name__}:Constant", options={"values": [4, 5, 6]}))
    np.testing.assert_array_equal(reward.score(PROMPTS, IMAGES), [4, 5, 6])


def test_options_that_a_reward_does_not_have_are_named():
    with pytest.raises(InvalidRequestError, match="options of .*Constant: .*'colour'"):
        make_reward(RewardConfig(f"{__name__}:Constant", options={"values": [1], "colour": "red"}))


@pytest.mark.parametrize(
    "name, error", [("nonsense", InvalidRequestError), ("no_such_module:X", RewardError), ("math:Nothing", RewardError)]
)
def test_an_unknown_reward_is_an_error_that_names_it(name, error):
    with pytest.raises(error, match=name.partition(":")[0]):
        make_reward(RewardConfig(name))
