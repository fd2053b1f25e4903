"""`verify_drafts` against the scheduler: a device that derives its own next plan must plan what the host would have."""

import numpy as np
import pytest

from simplear_engine import _C
from simplear_engine.kernels.op import all_ops

OFFSET, CODES = 60, 9  # few codes, so that guesses are often right
ARRAYS = (
    "query_start_loc", "context_lens", "positions", "slot_mapping", "token_ids", "token_slot", "logit_rows", "cond_row",
    "uncond_row", "position", "draw_slot", "seed", "window_start_loc", "window_seqs", "draft_source", "draft_width",
)  # fmt: skip


def make_plan():
    return _C.StepPlan(max_tokens=64, max_pairs=6, max_logit_rows=64, max_draws=32, max_blocks_per_seq=8)


def make_scheduler(plan, requests):
    scheduler = _C.Scheduler(
        plan=plan, num_blocks=90, block_size=16, max_queue=8, max_positions=128, num_codes=CODES, visual_offset=OFFSET
    )
    for i, (window, source, width, guided) in enumerate(requests):
        request = _C.Request()
        request.prompt, request.negative = [1 + i] * (3 + 5 * i), [7] * 4 if guided else []
        request.num_image_tokens, request.grid_width, request.seed = 60, width, i
        request.draft_window, request.draft_source, request.top_k = window, source, CODES
        request.guidance_scale = 2.0
        scheduler.enqueue(request)
    return scheduler


class Device:
    """The memory that lives from step to step, and the op on it."""

    def __init__(self, plan):
        self.plan = plan
        slots, draws = plan.last_code.shape[0], plan.token.shape[0]
        self.codes = _C.Tensor.zeros([slots, 128], "int32")
        self.step = _C.Tensor.zeros([1], "int32")
        self.drawn_token = _C.Tensor.zeros([4, draws], "int32")
        self.drawn_log_prob = _C.Tensor.zeros([4, draws], "float32")

    def verify(self, pool):
        p = self.plan
        tokens, seqs, rows, draws, windows = p.num_tokens, p.num_seqs, p.num_logit_rows, p.num_draws, p.num_windows
        counts = {
            "window_start_loc": windows + 1, "window_seqs": windows, "draft_source": windows, "draft_width": windows,
            "logit_rows": rows, "cond_row": draws, "uncond_row": draws, "draw_slot": draws, "token": draws,
            "log_prob": draws, "block_table": seqs, "token_ids": tokens, "positions": tokens, "slot_mapping": tokens,
            "context_lens": seqs, "position": draws,
        }  # fmt: skip
        args = {name: getattr(p, name).rows(0, count) for name, count in counts.items()}
        args |= {"last_code": p.last_code, "codes": self.codes, "step": self.step}
        args |= {"drawn_token": self.drawn_token, "drawn_log_prob": self.drawn_log_prob}
        all_ops()["verify_drafts"].run(_C.chosen_isa(), pool, args, visual_offset=OFFSET)


def in_use(plan, name):
    sizes = {
        "query_start_loc": plan.num_seqs + 1, "context_lens": plan.num_seqs, "logit_rows": plan.num_logit_rows,
        "window_start_loc": plan.num_windows + 1, "window_seqs": plan.num_windows, "draft_source": plan.num_windows,
        "draft_width": plan.num_windows,
    }  # fmt: skip
    per_token = name in ("positions", "slot_mapping", "token_ids", "token_slot")
    return getattr(plan, name).numpy()[: sizes.get(name, plan.num_tokens if per_token else plan.num_draws)].copy()


def copy_plan(source, target):
    for name in (*ARRAYS, "block_table", "guidance_scale", "temperature", "top_k", "top_p"):
        getattr(target, name).numpy()[...] = getattr(source, name).numpy()
    for count in ("num_tokens", "num_seqs", "num_logit_rows", "num_draws", "num_windows"):
        setattr(target, count, getattr(source, count))


@pytest.mark.parametrize(
    "requests",
    [
        [(1, "left", 8, True)],
        [(1, "left", 8, True), (1, "left", 8, False), (1, "above", 4, True)],
        [(4, "left", 8, True)],
        [(5, "above", 3, True), (1, "left", 8, False), (3, "above", 7, False), (2, "above", 0, True)],
    ],
)
def test_device_plans_what_the_scheduler_would_have(requests):
    host, device = make_plan(), Device(make_plan())
    scheduler, pool, rng = make_scheduler(host, requests), _C.ThreadPool(1), np.random.default_rng(1)
    logits = _C.Tensor.zeros([64, CODES], "float32")
    ahead = compared = 0
    while not scheduler.is_idle:
        if ahead > 0:
            scheduler.again(host)
            for name in ARRAYS:
                np.testing.assert_array_equal(in_use(device.plan, name), in_use(host, name), err_msg=name)
            compared += 1
        else:
            assert scheduler.next(host)
            copy_plan(host, device.plan)
            ahead = scheduler.steps_ahead(host)
        # Half of the guesses turn out right.
        ids = host.token_ids.numpy()[host.logit_rows.numpy()[host.cond_row.numpy()[: host.num_draws]]]
        drawn = rng.integers(0, CODES, host.num_draws).astype(np.int32)
        right = rng.random(host.num_draws) < 0.5
        drawn[:-1] = np.where(right[:-1] & (ids[1:] >= OFFSET), ids[1:] - OFFSET, drawn[:-1])
        for plan in (host, device.plan):
            plan.token.numpy()[: host.num_draws] = drawn
            plan.log_prob.numpy()[: host.num_draws] = -drawn.astype(np.float32)
        entry = int(device.step.numpy()[0]) % 4
        device.verify(pool)
        np.testing.assert_array_equal(device.drawn_token.numpy()[entry, : host.num_draws], drawn)
        np.testing.assert_array_equal(device.drawn_log_prob.numpy()[entry, : host.num_draws], -drawn)
        scheduler.commit(host, logits)
        ahead -= 1
    assert compared > 20


def test_batch_that_reads_a_prompt_is_planned_by_the_host():
    plan = make_plan()
    scheduler = make_scheduler(plan, [(1, "left", 8, True)])
    assert scheduler.next(plan) and scheduler.steps_ahead(plan) == 1
    scheduler.commit(plan, _C.Tensor.zeros([64, CODES], "float32"))
    assert scheduler.next(plan) and scheduler.steps_ahead(plan) == 59
