"""The scheduler against a cache that remembers which tokens each slot holds.

The fake model writes, for every query row, the tokens that lead up to it; attention then checks that every key of its
context is the right one. So sharing of prompt blocks, chunked prefill, cancellation and reuse of blocks are all checked
by one property: every sampled token was computed from exactly the history that its request has.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simplear_engine import _C
from simplear_engine.errors import CancelledError, CapacityError, InvalidRequestError, NumericalError, QueueFullError

BLOCK, OFFSET, CODES = 4, 50, 30


def drawn_code(seed, index, history):
    """Depends on what came before, so that a wrong draft spoils what is drawn behind it; repeats itself often enough
    that many drafts are right."""
    return (seed * 7 + index // 4 + history[-1] % 2) % CODES


class FakeEngine:
    """Scheduler, plan and a cache of histories; `step()` is one turn of the engine loop."""

    def __init__(self, num_blocks=64, max_tokens=8, max_pairs=3, max_queue=8, max_logit_rows=8, max_draws=8,
                 plans_ahead=False):  # fmt: skip
        self.plan = _C.StepPlan(
            max_tokens=max_tokens, max_pairs=max_pairs, max_logit_rows=max_logit_rows, max_draws=max_draws,
            max_blocks_per_seq=num_blocks,
        )  # fmt: skip
        self.scheduler = _C.Scheduler(
            plan=self.plan, num_blocks=num_blocks, block_size=BLOCK, max_queue=max_queue, max_positions=1000,
            num_codes=CODES, visual_offset=OFFSET, plans_ahead=plans_ahead,
        )  # fmt: skip
        self.plans_ahead, self.ahead = plans_ahead, 0  # steps that follow from the last plan without another
        self.cache = {}
        self.logits = _C.Tensor.zeros([max_logit_rows, CODES], "float32")
        self.poisoned = set()  # (seed, index) whose logits are not finite
        self.sampled = []  # (seed, index, conditional history, unconditional history)

    def step(self, seconds=None):
        """seconds: by number of rows, what the step is said to have taken."""
        if self.ahead > 0:
            self.scheduler.again(self.plan)
        elif not self.scheduler.next(self.plan):
            return False
        else:
            self.ahead = self.scheduler.steps_ahead(self.plan) if self.plans_ahead else 1
        self.ahead -= 1
        a = {name: getattr(self.plan, name).numpy() for name in
             ("token_ids", "token_slot", "positions", "slot_mapping", "query_start_loc", "context_lens", "block_table",
              "logit_rows", "seed", "position", "cond_row", "uncond_row", "draw_slot", "token", "last_code",
              "log_prob")}  # fmt: skip
        n, s = self.plan.num_tokens, self.plan.num_seqs
        assert n <= len(a["token_ids"]) and a["query_start_loc"][s] == n
        slots = a["slot_mapping"][:n]
        assert len(set(slots)) == n, "two rows write to one slot"
        keys = {}
        for seq in range(s):
            rows = range(a["query_start_loc"][seq], a["query_start_loc"][seq + 1])
            assert list(a["positions"][rows]) == list(range(a["context_lens"][seq] - len(rows), a["context_lens"][seq]))
            table = a["block_table"][seq]
            where = [table[j // BLOCK] * BLOCK + j % BLOCK for j in range(a["context_lens"][seq])]
            for row in rows:
                assert slots[row] == where[a["positions"][row]]
                keys[row] = where[: a["positions"][row] + 1]
        # As in the forward pass: all rows write before any row attends; a row knows its own token only.
        for row in sorted(keys, key=lambda r: len(keys[r])):
            token = a["token_ids"][row]
            token = token if token >= 0 else a["last_code"][a["token_slot"][row]] + OFFSET
            before = self.cache[keys[row][-2]] if len(keys[row]) > 1 else ()
            self.cache[slots[row]] = (*before, int(token))
        histories = {row: self.cache[where[-1]] for row, where in keys.items()}
        for row, where in keys.items():
            assert [self.cache[slot] for slot in where] == [histories[row][: j + 1] for j in range(len(where))]
        for draw in range(self.plan.num_draws):
            seed, index = int(a["seed"][draw]), int(a["position"][draw])
            rows = a["cond_row"][draw], a["uncond_row"][draw]
            cond, uncond = (histories[a["logit_rows"][r]] if r >= 0 else None for r in rows)
            self.sampled.append((seed, index, cond, uncond))
            code = -1 if (seed, index) in self.poisoned else drawn_code(seed, index, cond)
            a["token"][draw] = code
            a["log_prob"][draw] = -index
            a["last_code"][a["draw_slot"][draw]] = max(code, 0)
        if seconds is not None:
            self.scheduler.observe(self.plan, seconds(self.plan.num_tokens))
        self.scheduler.commit(self.plan, self.logits)
        return True

    def run(self):
        while self.step():
            pass


def request(prompt, negative, num_tokens, seed=0, draft_window=1, draft_source="left"):
    r = _C.Request()
    r.draft_window, r.draft_source, r.grid_width = draft_window, draft_source, 3
    r.prompt, r.negative, r.num_image_tokens, r.seed, r.top_k = prompt, negative, num_tokens, seed, CODES
    return r


def expected_codes(r):
    history, codes = list(r.prompt), []
    for i in range(r.num_image_tokens):
        codes.append(drawn_code(r.seed, i, history))
        history.append(codes[-1] + OFFSET)
    return codes


def assert_drawn_from_own_history(engine, requests):
    by_seed = {r.seed: r for r in requests}
    for seed, index, cond, uncond in engine.sampled:
        r = by_seed[seed]
        drawn = cond[len(r.prompt) :]
        assert len(drawn) == index and cond[: len(r.prompt)] == tuple(r.prompt)
        assert uncond == (tuple(r.negative) + drawn if r.negative else None)
        # A draw that only verifies a draft may have a wrong history; one without drafts may not.
        if r.draft_window == 1:
            assert drawn == tuple(code + OFFSET for code in expected_codes(r)[:index])


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=14)


@settings(max_examples=150, deadline=None)
@given(
    work=st.lists(
        st.tuples(
            prompts,
            st.one_of(st.just([]), prompts),
            st.integers(1, 9),
            st.integers(0, 4),
            st.booleans(),
            st.integers(1, 6),
            st.sampled_from(["left", "above"]),
        ),
        min_size=1,
        max_size=8,
    ),
    cancels=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 7)), max_size=4),
    max_tokens=st.integers(6, 20),
    num_blocks=st.integers(14, 40),
)
def test_every_token_is_drawn_from_its_own_history(work, cancels, max_tokens, num_blocks):
    engine = FakeEngine(num_blocks=num_blocks, max_tokens=max_tokens)
    requests = [
        request(prompt, negative, n, seed, window, source)
        for seed, (prompt, negative, n, _, _, window, source) in enumerate(work)
    ]
    arrivals = {}
    for r, (_, _, _, delay, *_) in zip(requests, work, strict=True):
        arrivals.setdefault(delay, []).append(r)
    turn = 0
    while turn < 13 or not engine.scheduler.is_idle:
        for r in arrivals.pop(turn, []):
            engine.scheduler.enqueue(r)
        for when, which in cancels:
            if when == turn and which < len(requests):
                requests[which].cancel()
        if turn == 6 and work[0][4]:
            engine.scheduler.forget_prefixes()
        engine.step()
        turn += 1
        assert turn < 500, "the scheduler makes no progress"
    cancelled = {which for _, which in cancels}
    for i, r in enumerate(requests):
        if r.status == "failed":
            assert i in cancelled
        else:
            assert list(r.codes) == expected_codes(r)
            assert list(r.log_probs) == [-i for i in range(r.num_image_tokens)]
            assert sum(r.accepted_lens) == r.num_image_tokens and max(r.accepted_lens) <= r.draft_window
    assert_drawn_from_own_history(engine, requests)
    assert engine.scheduler.num_free_blocks == num_blocks
    assert all(engine.scheduler.ref_count(block) == 0 for block in range(num_blocks))


def test_pair_is_admitted_only_when_both_rows_fit():
    # 9 prompt tokens and 4 drawn ones (the last is never fed back) are 3 blocks a row.
    engine = FakeEngine(num_blocks=5, max_tokens=64)
    a, b = request([1] * 9, [], 4, 1), request([2] * 9, [0] * 9, 4, 2)
    small = request([1], [], 2, 3)
    for r in (a, small):
        engine.scheduler.enqueue(r)
    engine.step()
    assert engine.scheduler.num_running == 2
    with pytest.raises(CapacityError, match="request needs 6 KV blocks, the cache has 5"):
        engine.scheduler.enqueue(b)
    engine.run()
    assert list(a.codes) == expected_codes(a)


def test_nobody_overtakes_a_request_that_waits_for_blocks():
    engine = FakeEngine(num_blocks=6, max_tokens=64)
    first, big, small = request([1] * 9, [], 4, 1), request([2] * 17, [], 4, 2), request([0], [], 1, 3)
    for r in (first, big, small):
        engine.scheduler.enqueue(r)
    engine.step()
    assert [r.status for r in (first, big, small)] == ["running", "queued", "queued"]
    engine.run()
    assert [list(r.codes) for r in (big, small)] == [expected_codes(big), expected_codes(small)]


def test_same_negative_prompt_is_computed_once():
    engine = FakeEngine(max_tokens=64)
    negative = [1, 2, 0, 1, 2, 0, 1, 2, 0]
    pairs = [request([seed] * 5, negative, 2, seed) for seed in range(3)]
    for r in pairs:
        engine.scheduler.enqueue(r)
    engine.scheduler.next(engine.plan)
    # Three prompts of five, one full negative prompt, and the unshared ninth token of the other two.
    assert engine.plan.num_tokens == 3 * 5 + 9 + 2
    assert engine.plan.num_draws == 3


def test_prompt_blocks_outlive_their_request_until_the_space_is_needed():
    engine = FakeEngine(max_tokens=64)
    prompt = [2] * 13
    engine.scheduler.enqueue(request(prompt, [], 1, 1))
    engine.run()
    engine.scheduler.enqueue(request(prompt, [], 1, 2))
    engine.scheduler.next(engine.plan)
    assert engine.plan.num_tokens == 1


def test_prompt_that_is_kept_loses_its_end_first():
    engine = FakeEngine(max_tokens=64, num_blocks=12)
    prompt = [2] * 13  # three blocks that can be shared
    # The second takes the nine blocks that keep nothing and leaves one of them so; the third takes that and one more.
    for other in (prompt, [1] * 33, [0] * 5):
        engine.scheduler.enqueue(request(other, [], 1, 1))
        engine.run()
    engine.scheduler.enqueue(request(prompt, [], 1, 2))
    engine.scheduler.next(engine.plan)
    assert engine.plan.num_tokens == 13 - 2 * BLOCK


def test_forgotten_prompts_are_computed_again():
    engine = FakeEngine(max_tokens=64)
    prompt = [2] * 13
    engine.scheduler.enqueue(request(prompt, [], 1, 1))
    engine.run()
    engine.scheduler.forget_prefixes()
    engine.scheduler.enqueue(request(prompt, [], 1, 2))
    engine.scheduler.next(engine.plan)
    assert engine.plan.num_tokens == 13


def test_images_being_drawn_do_not_wait_for_a_long_prompt():
    engine = FakeEngine(num_blocks=100, max_tokens=8)
    drawing, long = request([1, 2], [0], 20, 1), request([1] * 60, [2] * 60, 1, 2)
    engine.scheduler.enqueue(drawing)
    engine.step()
    engine.scheduler.enqueue(long)
    for _ in range(5):
        before = drawing.num_done
        engine.step()
        assert drawing.num_done == before + 1
    engine.run()
    assert list(long.codes) == expected_codes(long)


def test_cancelled_request_ends_with_cancelled_error_and_returns_its_blocks():
    engine = FakeEngine()
    running, waiting = request([1] * 7, [2] * 7, 9, 1), request([1], [], 1, 2)
    engine.scheduler.enqueue(running)
    engine.step()
    engine.scheduler.enqueue(waiting)
    for r in (running, waiting):
        r.cancel()
    assert not engine.step()
    for r in (running, waiting):
        with pytest.raises(CancelledError):
            r.raise_if_failed()
    assert engine.scheduler.num_free_blocks == 64


def test_non_finite_logits_end_one_request_and_no_other():
    engine = FakeEngine()
    bad, good = request([1], [2], 5, 1), request([1], [2], 5, 2)
    engine.poisoned.add((1, 2))
    for r in (bad, good):
        engine.scheduler.enqueue(r)
    engine.run()
    with pytest.raises(NumericalError, match="image token 2"):
        bad.raise_if_failed()
    assert list(good.codes) == expected_codes(good)
    assert_drawn_from_own_history(engine, [bad, good])


def test_non_finite_logits_are_found_at_the_same_token_behind_drafts():
    engine = FakeEngine()
    bad = request([1], [2], 9, 1, draft_window=6)
    engine.poisoned.add((1, 3))
    engine.scheduler.enqueue(bad)
    engine.run()
    with pytest.raises(NumericalError, match="image token 3"):
        bad.raise_if_failed()


def test_full_queue_refuses():
    engine = FakeEngine(max_queue=2)
    for seed in (1, 2):
        engine.scheduler.enqueue(request([1], [], 1, seed))
    with pytest.raises(QueueFullError, match="2 requests wait"):
        engine.scheduler.enqueue(request([1], [], 1, 3))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompt": []}, "prompt_ids: expected at least one token"),
        ({"prompt": [OFFSET + CODES]}, "token id: expected 0..79, got 80"),
        ({"negative": [-1]}, "token id: expected 0..79, got -1"),
        ({"num_image_tokens": 0}, "image tokens: expected at least 1, got 0"),
        ({"num_image_tokens": 1000}, "prompt and picture of 1001 tokens: the model knows 1000 positions"),
        ({"negative": [2] * 1000}, "negative prompt and picture of 1001 tokens: the model knows 1000 positions"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k: expected 1..30, got 0"),
        ({"top_k": 31}, "top_k: expected 1..30, got 31"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_impossible_request_is_refused_with_its_reason(change, message):
    r = request([1], [2], 1)
    for name, value in change.items():
        setattr(r, name, value)
    with pytest.raises(InvalidRequestError, match=message):
        FakeEngine(num_blocks=1000).scheduler.enqueue(r)


@pytest.mark.parametrize("scored_before", [False, True])
def test_scored_positions_get_the_logits_of_their_own_rows(scored_before):
    engine = FakeEngine(max_tokens=7, max_logit_rows=6)
    codes = [5, 4, 3, 2, 1, 0, 9, 8, 7, 6]
    r = request([1, 2, 0, 1, 2, 1, 0, 0, 1], [], len(codes))
    r.forced_codes = codes
    scores = np.full((len(codes), CODES), np.nan, np.float32)
    r.scores = _C.Tensor.from_numpy(scores)
    if scored_before:
        # Leaves its blocks behind; every logit is wanted again all the same.
        earlier = request(r.prompt, [], len(codes))
        earlier.forced_codes, earlier.scores = codes, _C.Tensor.zeros(scores.shape, "float32")
        engine.scheduler.enqueue(earlier)
        engine.run()
    other = request([1, 1], [2], 12, seed=3)
    engine.scheduler.enqueue(other)
    engine.step()
    engine.scheduler.enqueue(r)
    # A row of logits says which history it was computed from, by its length and its last token.
    while engine.scheduler.next(engine.plan):
        rows = engine.plan.logit_rows.numpy()[: engine.plan.num_logit_rows]
        for i, row in enumerate(rows):
            engine.logits.numpy()[i] = engine.plan.positions.numpy()[row] * 100 + engine.plan.token_ids.numpy()[row]
        engine.plan.token.numpy()[:] = 0
        engine.scheduler.commit(engine.plan, engine.logits)
    sequence = list(r.prompt) + [code + OFFSET for code in codes]
    first = len(r.prompt) - 1
    np.testing.assert_array_equal(scores[:, 0], [p * 100 + sequence[p] for p in range(first, first + len(codes))])
    assert (scores == scores[:, :1]).all()


def test_right_drafts_save_steps():
    steps = {}
    for window in (1, 4):
        engine = FakeEngine(max_tokens=32)
        r = request([1], [2], 24, seed=2, draft_window=window)
        engine.scheduler.enqueue(r)
        engine.run()
        assert list(r.codes) == expected_codes(r)
        steps[window] = len(r.accepted_lens)
    assert steps[4] < steps[1] == 24


def test_windows_shrink_when_many_images_are_drawn_at_once():
    engine = FakeEngine(max_tokens=8, max_pairs=3, num_blocks=100)
    images = [request([seed], [9], 12, seed, draft_window=16) for seed in range(3)]
    for r in images:
        engine.scheduler.enqueue(r)
    while engine.step():
        assert engine.plan.num_tokens <= 8
    for r in images:
        assert list(r.codes) == expected_codes(r)


def test_draft_above_repeats_the_row_above():
    engine = FakeEngine(max_tokens=32)
    r = request([1], [], 9, draft_window=4, draft_source="above")
    engine.scheduler.enqueue(r)
    while len(r.codes) < 3:
        engine.step()
    known = len(r.codes)
    engine.scheduler.next(engine.plan)
    drafts = engine.plan.token_ids.numpy()[1 : engine.plan.num_tokens] - OFFSET
    # Guesses kept from the step before come first; the fresh one is the code one row of three further up.
    window = [*r.codes, *drafts]
    assert window[-1] == window[-4] and len(drafts) == min(3, 9 - known - 1)


def adaptive(seed, num_tokens=60, draft_source="context"):
    r = request([1], [2], num_tokens, seed, draft_window=16, draft_source=draft_source)
    r.adapts_window = True
    return r


@pytest.mark.parametrize("plans_ahead", [False, True])
@pytest.mark.parametrize("num_images", [1, 3])
def test_windows_open_where_rows_cost_nothing_and_close_where_they_do(num_images, plans_ahead):
    mean_window = {}
    for name, cost in {"free": lambda rows: 1.0, "dear": lambda rows: float(rows)}.items():
        engine = FakeEngine(
            max_tokens=100, num_blocks=200, max_logit_rows=100, max_draws=50, plans_ahead=plans_ahead
        )  # fmt: skip
        for round_ in range(3):
            images = [adaptive(seed, draft_source="left" if plans_ahead else "context") for seed in range(num_images)]
            for r in images:
                engine.scheduler.enqueue(r)
            while engine.step(cost):
                pass
            for r in images:
                assert list(r.codes) == expected_codes(r)
        verified = sum(r.draft_counts[0].sum() for r in images)
        mean_window[name] = 1 + verified / sum(len(r.accepted_lens) for r in images)
        if name == "dear":
            # Where a row costs as much as a step, only drafts that are sure to be right are worth theirs.
            assert verified <= 1.05 * sum(r.draft_counts[1].sum() for r in images) + 5
    assert mean_window["free"] > 4


def test_one_interrupted_step_does_not_close_windows():
    engine = FakeEngine(max_tokens=100, num_blocks=200, max_logit_rows=100, max_draws=50)
    steps = []
    for interrupted in (False, True):
        for seed in range(3):
            r = adaptive(seed)
            engine.scheduler.enqueue(r)
            while engine.step(lambda rows: 50.0 if interrupted and len(engine.sampled) % 37 == 0 else 1.0):
                pass
        steps.append(len(r.accepted_lens))
    assert steps[1] <= steps[0] + 3


def test_relaxed_drafts_stay_one_lattice_step_from_what_was_drawn():
    levels = [5, 6]

    def distance(code, other):
        return abs(code % 5 - other % 5) + abs(code // 5 - other // 5)

    changed, steps = 0, {}
    for seed in range(8):
        for relaxed in ([], levels):
            engine = FakeEngine(max_tokens=32)
            r = request([1], [2], 40, seed, draft_window=6)
            r.relaxed_levels = relaxed
            engine.scheduler.enqueue(r)
            engine.run()
            steps[seed, bool(relaxed)] = len(r.accepted_lens)
            if not relaxed:
                assert list(r.codes) == expected_codes(r)
                continue
            history = list(r.prompt)
            for i, (code, log_prob) in enumerate(zip(r.codes, r.log_probs, strict=True)):
                drawn = drawn_code(seed, i, history)
                assert distance(code, drawn) <= 1
                assert np.isnan(log_prob) if code != drawn else log_prob == -i
                changed += code != drawn
                history.append(code + OFFSET)
    assert changed > 20
    assert sum(steps[seed, True] for seed in range(8)) < 0.8 * sum(steps[seed, False] for seed in range(8))


def test_relaxed_levels_have_digits():
    engine = FakeEngine()
    r = request([1], [2], 4)
    r.relaxed_levels = [5, 0]
    with pytest.raises(InvalidRequestError, match="relaxed_levels"):
        engine.scheduler.enqueue(r)


@pytest.mark.parametrize("rule", ["ratio", "simplear"])
def test_rules_that_read_logits_share_steps_with_draws(rule):
    rng = np.random.default_rng(1)
    engine = FakeEngine(max_tokens=24, max_pairs=4, num_blocks=100, max_logit_rows=20)
    free = engine.scheduler.num_free_blocks
    exact = [request([1, 2, 3], [4], 20, seed, draft_window=4) for seed in range(2)]
    ruled = [request([1, 2, 3], [4] if seed < 12 else [], 20, seed, draft_window=6) for seed in range(10, 14)]
    for r in ruled:
        r.draft_rule = rule
    for r in (ruled[0], exact[0], *ruled[1:], exact[1]):
        engine.scheduler.enqueue(r)
    steps = 0
    while True:
        engine.logits.numpy()[:] = rng.standard_normal(engine.logits.numpy().shape) * 3
        if not engine.step():
            break
        steps += 1
        if steps == 4:
            ruled[1].cancel()
    for r in exact:
        assert list(r.codes) == expected_codes(r)
    for r in (ruled[0], *ruled[2:]):
        assert r.status == "finished" and len(r.codes) == 20 and r.accepted_lens.sum() == 20
        assert all(0 <= code < CODES for code in r.codes)
    with pytest.raises(CancelledError):
        ruled[1].raise_if_failed()
    assert engine.scheduler.num_free_blocks == free


def test_logits_that_are_no_numbers_fail_the_rule_that_reads_them():
    engine = FakeEngine(max_tokens=24, max_logit_rows=20)
    r, other = request([1], [2], 6, 1, draft_window=4), request([1], [2], 6, 2, draft_window=4)
    r.draft_rule = "ratio"
    engine.logits.numpy()[:] = np.nan
    for each in (r, other):
        engine.scheduler.enqueue(each)
    engine.run()
    with pytest.raises(NumericalError, match="image token 0"):
        r.raise_if_failed()
    assert list(other.codes) == expected_codes(other)


def test_unknown_rule_is_refused():
    with pytest.raises(InvalidRequestError, match="draft_rule: unknown: magic"):
        request([1], [2], 4).draft_rule = "magic"


@pytest.mark.parametrize("width", [6, 20])
def test_drafts_of_others_do_not_keep_a_newcomer_waiting(width):
    """A window may fill a step; whoever comes along then still reads its prompt and draws."""
    engine = FakeEngine(400, max_tokens=width, max_pairs=3, max_logit_rows=width, max_draws=width // 2)
    greedy = [request([1], [2], 300, seed=s, draft_window=width, draft_source="left") for s in (1, 2)]
    for r in greedy:
        engine.scheduler.enqueue(r)
    for _ in range(8):
        engine.step()
    newcomer = request([1, 1, 2], [2, 1], 4, seed=3)
    engine.scheduler.enqueue(newcomer)
    for _ in range(16):
        engine.step()
    assert newcomer.status == "finished" and all(r.status == "running" for r in greedy)
    engine.run()
    for r in (*greedy, newcomer):
        assert r.codes.tolist() == expected_codes(r)


def test_drafts_of_others_do_not_keep_scores_waiting():
    engine = FakeEngine(200, max_tokens=8, max_logit_rows=8, max_draws=8)
    greedy = request([1], [2], 300, seed=1, draft_window=8)
    engine.scheduler.enqueue(greedy)
    for _ in range(4):
        engine.step()
    scores = np.zeros((5, CODES), np.float32)
    scoring = request([1, 2], [], 5, seed=2)
    scoring.forced_codes, scoring.scores = [0, 1, 2, 3, 4], _C.Tensor.from_numpy(scores)
    engine.scheduler.enqueue(scoring)
    for _ in range(12):
        engine.step()
    assert scoring.status == "finished" and greedy.status == "running"
