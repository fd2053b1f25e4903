"""Drafts tested by their probabilities: the rules of ratio_test.h against a plain transcription, and the law they follow.

The network knows three codes and pictures have six, so the probability of every picture can be written down.
"""

import threading
from itertools import product

import numpy as np
import pytest
from simplear_engine.kernels.gumbel_noise.noise import gumbel, philox

from simplear_engine import Engine
from simplear_engine.config import ModelConfig
from simplear_engine.errors import InvalidRequestError
from simplear_engine.weights import weight_specs

NUM_CODES, PROMPT, NEGATIVE, SCALE = 3, [1, 2], [3], 1.5
CONFIG = ModelConfig(
    hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, rope_theta=1e4,
    rms_norm_eps=1e-6, vocab_size=8 + NUM_CODES, tie_word_embeddings=False, max_position_embeddings=80,
    visual_offset=8,
)  # fmt: skip
RULES = ["ratio", "simplear"]


@pytest.fixture(scope="module")
def engine():
    rng = np.random.default_rng(3)
    weights = {
        name: (np.ones(spec.shape) if "norm" in name else rng.standard_normal(spec.shape) * 0.5).astype(np.float32)
        for name, spec in weight_specs(CONFIG).items()
    }
    with Engine.from_weights(CONFIG, weights, threads=1, max_pairs=32) as engine:
        yield engine


def draw(engine, rule, window, seed=0, height=2, **options):
    options = {"guidance_scale": SCALE, "draft_source": "left", **options}
    return engine.generate_from_ids(
        PROMPT, NEGATIVE, height=16 * height, width=48, seed=seed, speculation=rule, draft_window=window, **options
    )


class Law:
    """p(code | codes before it), guided, as the engine scores it; memory makes it affordable."""

    def __init__(self, engine, top_k=NUM_CODES):
        self.engine, self.top_k, self.known = engine, top_k, {}

    def __call__(self, before) -> np.ndarray:
        before = tuple(before)
        if before not in self.known:
            codes = np.array([*before, 0])
            cond, uncond = (self.engine.score_from_ids(ids, codes)[-1].astype(np.float64) for ids in (PROMPT, NEGATIVE))
            z = uncond + SCALE * (cond - uncond)
            p = np.where(z >= np.sort(z)[-self.top_k], np.exp(z - z.max()), 0)
            self.known[before] = p / p.sum()
        return self.known[before]


def passes(u, draft, q, p):
    """q: what the draft was drawn from; None of a guess."""
    return u * (1.0 if q is None else q[draft]) < p[draft]


def rest(draft, q, p):
    """Weights of the code in place of a draft that did not pass."""
    left = np.maximum(p - (np.eye(NUM_CODES)[draft] if q is None else q), 0)
    return left if left.sum() > 0 else p


def pick(weights, u):
    return int(np.searchsorted(np.cumsum(weights), u * np.sum(weights), side="right"))


def chances(seed, step, position, count):
    """Of `count` places from `position` on: for the test of a draft, and for a draw."""
    words = [philox_words(seed, step, position + i) for i in range(count)]
    return [(a + 0.5) / 2**32 for a, *_ in words], [(b + (c + 0.5) / 2**32) / 2**32 for _, b, c, _ in words]


def transcription(rule, law, num_codes, window, seed):
    """The rule, step by step and without a cache: (codes, codes kept in each step)."""
    codes, lengths, drafts, origins = [], [], [], []
    while len(codes) < num_codes:
        here = len(codes)
        room = min(window - 1, num_codes - 1 - here) if codes else 0
        drafts, origins = drafts[:room], origins[:room]
        while len(drafts) < room:
            drafts.append((codes + drafts)[-1])
            origins.append(None)
        drawn = sum(q is not None for q in origins)
        p = [law(codes + drafts[:i]) for i in range(room + 1)]
        test, draw = chances(seed, len(lengths), here, room + 1)
        if rule == "ratio":
            with np.errstate(divide="ignore"):
                redrawn = [int(np.argmax(np.log(q) + plain_noise(seed, here + i))) for i, q in enumerate(p)]
        elif here < 2 and drawn == 0:
            redrawn = [int(np.argmax(q)) for q in p]
        else:
            redrawn = [pick(q, u) for q, u in zip(p, draw, strict=True)]
        after = []
        if rule == "ratio":
            kept = 0
            while kept < room and passes(test[kept], drafts[kept], origins[kept], p[kept]):
                kept += 1
            last = rest(drafts[kept], origins[kept], p[kept]) if kept < room else p[kept]
            taken = [*drafts[:kept], pick(last, draw[kept])]
        else:
            kept = 1
            while kept < drawn and passes(test[kept], drafts[kept], origins[kept], p[kept]):
                kept += 1
            taken = drafts[:kept] if drawn else redrawn[:1]
            if kept < drawn:
                after = [pick(rest(drafts[kept], origins[kept], p[kept]), draw[kept])]
        drafts = after + redrawn[len(taken) + len(after) :]
        origins = p[len(taken) :]
        codes += taken
        lengths.append(len(taken))
    return codes, lengths


def philox_words(seed, step, position):
    """Philox4x32-10 of the counter (step, position, 1, 0)."""
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    c = [step, position, 1, 0]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def plain_noise(seed, position):
    return gumbel(philox(seed, np.arange(1), position).T.reshape(-1))[:NUM_CODES]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("top_k", [NUM_CODES, 2])
def test_rule_is_the_transcribed_one(engine, rule, top_k):
    law = Law(engine, top_k)
    lengths = []
    for window in (1, 2, 3, 6, 64):
        for seed in range(40):
            image = draw(engine, rule, window, seed, height=4, top_k=top_k)[0]
            codes, steps = transcription(rule, law, 12, window, seed)
            assert image.tokens.reshape(-1).tolist() == codes and image.accepted_lens.tolist() == steps
            flat = image.log_probs.reshape(-1)
            with np.errstate(divide="ignore"):
                stated = [np.log(law(codes[:i])[code]) for i, code in enumerate(codes)]
            np.testing.assert_allclose(flat, stated, atol=1e-5)
            lengths += steps if window == 6 else []
    # Drafts pass and fail, both often.
    assert 1.2 < np.mean(lengths) < 4


def sequence_counts(images):
    weights = NUM_CODES ** np.arange(6)[::-1]
    codes = [int(image.tokens.reshape(-1) @ weights) for image in images]
    return np.bincount(codes, minlength=NUM_CODES**6)


@pytest.mark.parametrize("rule, window", [("ratio", 2), ("ratio", 4), ("ratio", 6), ("simplear", 6)])
def test_ratio_keeps_the_law_and_simplears_rule_does_not(engine, rule, window):
    law = Law(engine)
    p = np.array(
        [np.prod([law(codes[:i])[code] for i, code in enumerate(codes)]) for codes in product(range(3), repeat=6)]
    )
    assert abs(p.sum() - 1) < 1e-9
    counts = sequence_counts(draw(engine, rule, window, num_images=9000))
    # Rare sequences go together, so that every bin is expected to hold ten.
    rare = p * counts.sum() < 10
    counts, p = (np.append(a[~rare], a[rare].sum()) for a in (counts, p))
    expected = p * counts.sum()
    statistic, freedom = ((counts - expected) ** 2 / expected).sum(), len(p) - 1
    excess = (statistic - freedom) / np.sqrt(2 * freedom)
    assert freedom > 50
    assert excess < 5 if rule == "ratio" else excess > 20


@pytest.mark.parametrize("window", [1, 2, 5, 64])
def test_greedy_pictures_of_the_ratio_test_are_the_plain_ones(engine, window):
    plain = draw(engine, None, None, height=5, temperature=0, draft_source=None)[0]
    image = draw(engine, "ratio", window, height=5, temperature=0)[0]
    np.testing.assert_array_equal(image.tokens, plain.tokens)
    assert image.inexact == "ratio" and (image.log_probs == 0).all()


@pytest.mark.parametrize("window", [1, 2, 5, 64])
def test_greedy_pictures_of_simplears_rule_go_astray_once(engine, window):
    """The draft behind the first window's first place was drawn behind a guess, and is kept unseen."""
    law = Law(engine)
    codes = draw(engine, "simplear", window, height=5, temperature=0)[0].tokens.reshape(-1).tolist()
    astray = [i for i, code in enumerate(codes) if code != np.argmax(law(codes[:i]))]
    assert astray in ([], [2]) and (window > 1 or not astray)


def test_others_do_not_notice(engine):
    # Windows of all of them fit into a step: with a rule that is not exact a shorter window draws another picture.
    plain = engine.generate_from_ids(PROMPT, NEGATIVE, height=48, width=48, num_images=3, seed=0, guidance_scale=SCALE)
    alone = draw(engine, "ratio", 6, num_images=3, height=3)
    drawn = {}

    def work(name, function):
        drawn[name] = function()

    threads = [
        threading.Thread(target=work, args=("ratio", lambda: draw(engine, "ratio", 6, num_images=3, height=3))),
        threading.Thread(target=work, args=("simplear", lambda: draw(engine, "simplear", 9, num_images=3, height=3))),
        threading.Thread(
            target=work,
            args=(
                "plain",
                lambda: engine.generate_from_ids(
                    PROMPT, NEGATIVE, height=48, width=48, num_images=3, seed=0, guidance_scale=SCALE
                ),
            ),
        ),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, expected in (("plain", plain), ("ratio", alone)):
        for image, other in zip(drawn[name], expected, strict=True):
            np.testing.assert_array_equal(image.tokens, other.tokens)
    stats = engine.stats()
    assert stats["num_free_blocks"] == stats["num_blocks"]


@pytest.mark.parametrize("source", ["context", "marginal", "previous"])
def test_guesses_from_other_pictures_are_refused(engine, source):
    with pytest.raises(InvalidRequestError, match="draft_source.*left or above"):
        draw(engine, "ratio", 4, draft_source=source)
