"""GRPO's arithmetic against a slow version that is written out in NumPy."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from simplear_train.grpo_objective import ObjectiveConfig, group_advantages, grpo_loss


def brute_force(new, old, drawn, reference, advantages, mask, config, max_length):
    """One token at a time, as the docstring of grpo_objective.py says it."""
    losses, kls = np.zeros_like(new), np.zeros_like(new)
    for i in range(new.shape[0]):
        kept = [t for t in range(new.shape[1]) if mask[i, t]]
        for t in kept:
            if config.ratio_level == "sequence":
                ratio = np.exp(np.mean([new[i, s] - old[i, s] for s in kept]))
            else:
                ratio = np.exp(new[i, t] - old[i, t])
            clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            gain = min(ratio * advantages[i], clipped * advantages[i])
            if config.importance_cap:
                gain *= min(np.exp(old[i, t] - drawn[i, t]), config.importance_cap)
            difference = reference[i, t] - new[i, t]
            kls[i, t] = np.exp(difference) - difference - 1
            losses[i, t] = -gain + config.beta * kls[i, t]
    sequences = [i for i in range(new.shape[0]) if mask[i].any()]
    if config.mean == "token_mean":
        loss = losses.sum() / mask.sum()
    elif config.mean == "sequence_mean":
        loss = np.mean([losses[i].sum() / mask[i].sum() for i in sequences])
    else:
        loss = losses.sum() / (len(sequences) * max_length)
    return loss, kls.sum() / mask.sum()


def example(seed=0, shape=(6, 7)):
    rng = np.random.default_rng(seed)
    new = -rng.random(shape) * 3
    old, drawn, reference = (new + 0.4 * rng.standard_normal(shape) for _ in range(3))
    mask = rng.random(shape) < 0.8
    mask[0] = False
    mask[1:, 0] = True
    return new, old, drawn, reference, rng.standard_normal(shape[0]), mask


@pytest.mark.parametrize("mean", ["token_mean", "sequence_mean", "length_unbiased"])
@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
@pytest.mark.parametrize("cap", [0.0, 1.2])
def test_loss_and_gradient_equal_a_brute_force_version(mean, ratio_level, cap):
    config = ObjectiveConfig(
        beta=0.3, clip_low=0.1, clip_high=0.25, mean=mean, ratio_level=ratio_level, importance_cap=cap
    )
    new, old, drawn, reference, advantages, mask = example()
    number = (int(mask.sum()), int(mask.any(1).sum()), 9)
    tensors = [torch.tensor(x) for x in (new, old, drawn, reference, advantages, mask)]
    tensors[0].requires_grad_()
    loss, metrics = grpo_loss(*tensors, *number, config)
    expected, kl = brute_force(new, old, drawn, reference, advantages, mask, config, 9)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert metrics["kl"].item() == pytest.approx(kl, rel=1e-10)
    loss.backward()
    for i, t in ((1, 0), (3, 0), (5, 0)):
        values = []
        for step in (1e-5, -1e-5):
            moved = new.copy()
            moved[i, t] += step
            values.append(brute_force(moved, old, drawn, reference, advantages, mask, config, 9)[0])
        assert tensors[0].grad[i, t].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-9)
    assert (tensors[0].grad[~tensors[5]] == 0).all()


def test_micro_batches_add_up_to_the_whole_step():
    new, old, drawn, reference, advantages, mask = (torch.tensor(x) for x in example(1))
    number = (int(mask.sum()), int(mask.any(1).sum()), 7)
    whole = grpo_loss(new, old, drawn, reference, advantages, mask, *number, ObjectiveConfig())[0]
    parts = [
        grpo_loss(new[p], old[p], drawn[p], reference[p], advantages[p], mask[p], *number, ObjectiveConfig())[0]
        for p in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_advantages_compare_within_groups_only():
    advantages, counts = group_advantages(np.array([1, 2, 3, 100, 100, 130], np.float32), 3)
    np.testing.assert_allclose(advantages[:3], [-1, 0, 1], atol=1e-3)
    np.testing.assert_allclose(advantages[3:], np.array([-10, -10, 20]) / np.sqrt(300), atol=1e-3)
    assert counts.all()
    np.testing.assert_allclose(group_advantages(np.array([1, 2, 3], np.float32), 3, False)[0], [-1, 0, 1])


def test_a_reward_that_is_nan_takes_its_picture_out_and_leaves_its_group_comparable():
    nan = np.nan
    advantages, counts = group_advantages(np.array([1, nan, 3, 1, nan, nan, 5, 5, 5], np.float32), 3)
    np.testing.assert_allclose(advantages[:3], [-0.7071, 0, 0.7071], atol=1e-3)
    assert counts.tolist() == [True, False, True, False, False, False, True, True, True]
    assert (advantages[3:] == 0).all() and np.isfinite(advantages).all()
