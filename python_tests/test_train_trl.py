"""TRL's trainer may use the engine for rollouts, and its loss is ours on what is text to it."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from simplear_train.grpo_objective import ObjectiveConfig, grpo_loss
from simplear_train.model_folder import from_folder
from simplear_train.trl import engine_on, rollout_func


def test_rollouts_carry_the_log_probabilities_of_the_trainers_own_parameters(tiny_checkpoint):
    model = transformers.Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    folder = from_folder(str(tiny_checkpoint))
    offset = folder.model.config.visual_offset
    trainer = SimpleNamespace(state=SimpleNamespace(global_step=3), accelerator=SimpleNamespace(process_index=0))
    with engine_on(model, folder, threads=1) as engine:
        roll = rollout_func(engine, folder)
        first = roll(["a cat", "a cat", "two dogs"], trainer)
        assert first["completion_ids"][0] != first["completion_ids"][1] and len(first["image"]) == 3
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.02 * torch.randn_like(p))
        second = roll(["a cat", "two dogs"], trainer)
    for prompt, completion, log_probs in zip(*(second[k] for k in ("prompt_ids", "completion_ids", "logprobs"))):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1, offset:]
        codes = torch.tensor(completion)[:, None] - offset
        expected = logits.log_softmax(-1).gather(1, codes)[:, 0]
        torch.testing.assert_close(torch.tensor(log_probs), expected, rtol=0, atol=1e-4)


def test_a_step_may_have_more_pictures_than_a_queue_that_serves_anybody(tiny_checkpoint):
    model = transformers.Qwen2ForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    folder = from_folder(str(tiny_checkpoint))
    trainer = SimpleNamespace(state=SimpleNamespace(global_step=0), accelerator=SimpleNamespace(process_index=0))
    with engine_on(model, folder, threads=1) as engine, ThreadPoolExecutor() as pool:
        with engine._core.pause(weights_change=False):  # so that all of them wait
            rolling = pool.submit(rollout_func(engine, folder, height=16, width=16), ["a cat"] * 300, trainer)
            deadline = time.monotonic() + 30
            while engine.stats()["num_waiting"] < 300 and time.monotonic() < deadline:
                time.sleep(0.01)
        assert len(rolling.result()["image"]) == 300


@pytest.mark.parametrize(
    "loss_type, mean", [("bnpo", "token_mean"), ("grpo", "sequence_mean"), ("dr_grpo", "length_unbiased")]
)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_loss_is_trls(loss_type, mean, level):
    trl = pytest.importorskip("trl")
    torch.manual_seed(0)
    new = -3 * torch.rand(4, 6)
    old, reference = (new + 0.3 * torch.randn(4, 6) for _ in range(2))
    mask = (torch.arange(6) < torch.tensor([[6], [3], [5], [1]])).long()
    advantages = torch.randn(4)
    config = ObjectiveConfig(beta=0.07, clip_low=0.1, clip_high=0.2, mean=mean, ratio_level=level, importance_cap=0)
    ours, metrics = grpo_loss(new, old, None, reference, advantages, mask, int(mask.sum()), 4, 10, config)

    class Anything(SimpleNamespace):
        """Whatever else the trainer looks at for its logs."""

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return None

    fields = dict(
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, torch.zeros_like(new), None),
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level=level, beta=config.beta,
        args=Anything(use_bias_correction_kl=False, delta=None), loss_type=loss_type, epsilon_low=0.1, epsilon_high=0.2,
        use_vllm=False, model=Anything(training=True), current_gradient_accumulation_steps=1, max_completion_length=10,
        accelerator=Anything(gather=lambda t: t, num_processes=1, reduce=lambda t, **_: t), aux_loss_enabled=False,
        _metrics={"train": __import__("collections").defaultdict(list)},
    )  # fmt: skip
    inputs = {
        "prompt_ids": torch.zeros(4, 1, dtype=torch.long), "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_ids": torch.zeros(4, 6, dtype=torch.long), "completion_mask": mask, "advantages": advantages,
        "old_per_token_logps": old, "ref_per_token_logps": reference, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    theirs = trl.GRPOTrainer._compute_loss(Anything(**fields), None, inputs)
    torch.testing.assert_close(ours, theirs)
