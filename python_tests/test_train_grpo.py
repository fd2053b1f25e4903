"""Rollouts come from the parameters that are being trained, and the loop around them goes on where it was killed."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from simplear_engine.errors import InvalidRequestError
from simplear_train.checkpoint import load_checkpoint
from simplear_train.grpo import Grpo, GrpoConfig, grpo
from simplear_train.grpo_objective import ObjectiveConfig
from simplear_train.loop import LoopConfig
from simplear_train.model_folder import from_folder
from simplear_train.rewards import RewardConfig, RewardError
from simplear_train.rollout import RolloutConfig, read_prompts


class Dark:
    """Dark pictures are good; `nan_for` cannot be judged."""

    def __init__(self, nan_for: str = ""):
        self.nan_for = nan_for

    def score(self, prompts, images):
        values = -images.mean((1, 2, 3)).astype(np.float32)
        return np.where([bool(self.nan_for) and self.nan_for in p for p in prompts], np.float32(np.nan), values)


class Dead:
    def score(self, prompts, images):
        raise ConnectionError("nobody listens")


def config_for(tmp_path, start, **changes) -> GrpoConfig:
    prompts = tmp_path / "prompts.txt"
    if not prompts.exists():
        prompts.write_text("a red apple\ntwo dogs\na cat\n")
    loop = dict(steps=4, learning_rate=1e-3, compute_dtype="float32", log_every=1, save_every=2, validate_every=100)
    rollout = dict(prompts=str(prompts), prompts_per_step=2, group_size=3, threads=1, max_pairs=4)
    values = dict(
        rollout=RolloutConfig(**{**rollout, **changes.pop("rollout", {})}),
        rewards=(RewardConfig(f"{__name__}:Dark"),),
        start=str(start),
        objective=ObjectiveConfig(beta=0.1),
        micro_batch_size=4,
        loop=LoopConfig(**{**loop, **changes.pop("loop", {})}),
    )
    return GrpoConfig(**{**values, **changes})


@pytest.mark.parametrize(
    "dtype, guidance, temperature, top_k, bound",
    [
        ("float32", 1.0, 1.0, 0, 1e-4),
        ("float32", 1.6, 0.8, 0, 1e-4),
        ("float32", 1.4, 1.0, 2, 1e-4),
        ("bfloat16", 1.0, 1.0, 0, 2e-2),
    ],
)
def test_engine_and_trainer_agree_on_the_probability_of_every_token(
    tmp_path, one_thread, dtype, guidance, temperature, top_k, bound
):
    rollout = dict(guidance_scale=guidance, temperature=temperature, top_k=top_k)
    config = config_for(
        tmp_path, "default", rollout=rollout, objective_guidance=guidance, loop=dict(compute_dtype=dtype),
        objective=ObjectiveConfig(beta=0.0),
    )  # fmt: skip
    stage = Grpo(from_folder("default"), None, config, tmp_path, "cpu")
    for parameter in stage.model.parameters():
        parameter.data.mul_(0.97)  # the engine has to see what is here, not what the folder holds
    (batches,) = list(stage.updates(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        gaps = [stage.loss(batch)[1]["mismatch_max" if dtype == "float32" else "mismatch"].item() for batch in batches]
    assert max(gaps) < bound
    assert len(batches) == 2 and sum(len(b.codes) for b in batches) == 6


def test_a_killed_run_resumes_to_the_same_weights_and_the_same_log(tmp_path, tiny_checkpoint, one_thread):
    config = config_for(tmp_path, tiny_checkpoint)
    grpo(config, tmp_path / "straight", "cpu")
    grpo(config, tmp_path / "halved", "cpu", stop_at=2)
    with (tmp_path / "halved" / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "reward": 1')  # a line that the kill cut off
    grpo(config, tmp_path / "halved", "cpu", resume=True)
    straight, halved = (load_checkpoint(tmp_path / name / "checkpoint.pt")["model"] for name in ("straight", "halved"))
    for name, value in straight.items():
        assert torch.equal(halved[name], value), name
    curves = []
    for name in ("straight", "halved"):
        rows = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        curves.append({row["step"]: row["reward"] for row in rows if "reward" in row})
    assert curves[0] == pytest.approx(curves[1]) and list(curves[0]) == list(curves[1]) == [1, 2, 3, 4]
    start = from_folder(str(tiny_checkpoint)).model.state_dict()
    assert any(not torch.equal(start[name], value) for name, value in straight.items())


def test_a_step_may_have_more_pictures_than_a_queue_that_serves_anybody(tmp_path, tiny_checkpoint):
    rollout = dict(prompts_per_step=90, group_size=4, height=128, width=128, max_pairs=1)
    stage = Grpo(
        from_folder(str(tiny_checkpoint)), None, config_for(tmp_path, tiny_checkpoint, rollout=rollout), tmp_path, "cpu"
    )
    assert sum(len(batch.codes) for update in stage.updates(0) for batch in update) == 360


def test_a_second_run_does_not_overwrite_the_first(tmp_path, tiny_checkpoint, one_thread):
    config = config_for(tmp_path, tiny_checkpoint, loop=dict(steps=1))
    grpo(config, tmp_path / "run", "cpu")
    with pytest.raises(InvalidRequestError, match="holds a run already.*--resume"):
        grpo(config, tmp_path / "run", "cpu")


def test_unjudged_pictures_are_counted_and_a_dead_reward_ends_the_run(tmp_path, tiny_checkpoint, one_thread):
    nan = RewardConfig(f"{__name__}:Dark", options={"nan_for": "dogs"})
    config = config_for(tmp_path, tiny_checkpoint, rewards=(nan,), rollout=dict(prompts_per_step=3), loop=dict(steps=1))
    grpo(config, tmp_path / "nan", "cpu")
    row = json.loads((tmp_path / "nan" / "log.jsonl").read_text().splitlines()[1])
    assert row["rewards_nan"] == 3 and row["groups_without_signal"] == 1 and np.isfinite(row["loss"])

    config = config_for(tmp_path, tiny_checkpoint, rewards=(RewardConfig(f"{__name__}:Dead"),))
    with pytest.raises(RewardError, match="3 steps in a row.*nobody listens"):
        grpo(config, tmp_path / "dead", "cpu")
    rows = [json.loads(line) for line in (tmp_path / "dead" / "log.jsonl").read_text().splitlines()]
    assert [row["reward_failures"] for row in rows if "step" in row] == [1, 1]


def test_several_updates_on_one_rollout_clip_against_its_own_probabilities(tmp_path, tiny_checkpoint, one_thread):
    config = config_for(tmp_path, tiny_checkpoint, updates=3, loop=dict(steps=1, learning_rate=3e-2))
    grpo(config, tmp_path / "run", "cpu")
    row = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[1])
    assert row["clip_ratio"] > 0 and row["kl"] > 0


def test_a_prompt_file_with_bad_lines_is_refused_with_their_numbers(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "a cat"}\n\n{"prompt": 7}\n{"promt": "a dog"}\n{broken\n\xff\xfe bytes\nplain text\n')
    with pytest.raises(InvalidRequestError, match="4 of its lines") as error:
        read_prompts(path)
    assert all(f"line {n}" in str(error.value) for n in (3, 4, 5, 6))
    path.write_text('{"prompt": "a cat"}\n\nplain text\n')
    assert read_prompts(path) == ["a cat", "plain text"]
    # What other programs write: a mark at the beginning, other ends of lines, and in a line marks that Python ends it at.
    path.write_bytes('\ufeff{"prompt": "a cat"}\r\na dog\u2028on a mat\n{"prompt": "a\u2028b"}\n'.encode())
    assert read_prompts(path) == ["a cat", "a dog\u2028on a mat", "a\u2028b"]
    with pytest.raises(InvalidRequestError, match="nothing.txt: expected a file of prompts: No such file"):
        read_prompts(tmp_path / "nothing.txt")
