"""What does speculation cost and gain if drafts are right as often as told? For models whose pictures mean nothing, too.

    python benchmarks/speculation_cost.py                         random 0.5b weights, 64 codes a picture
    python benchmarks/speculation_cost.py --model default --right 0.5,0.7,0.9,1

Draws a picture plainly and hands its codes to the engine as drafts, each replaced by another with the chance that makes
it wrong. Every picture must equal the plain one. Ways take turns, medians over rounds; "step" is milliseconds of
a step over those of a plain one, "gain" is plain time over this. The last line is JSON.
"""

import argparse
import json
import statistics

import numpy as np

from simplear_engine import Engine
from simplear_engine.bench.models import model_folder


class ForcedEngine(Engine):
    """Whose requests bring drafts along."""

    proposal: list[int] | None = None

    def _request(self, *arguments):
        request = super()._request(*arguments)
        if self.proposal is not None:
            request.proposal, request.draft_source = self.proposal, "given"
        return request


def corrupted(codes: np.ndarray, right: float, num_codes: int, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    wrong = rng.random(codes.size) >= right
    return [int(code) for code in np.where(wrong, (codes.reshape(-1) + 1) % num_codes, codes.reshape(-1))]


def draw(engine: Engine, proposal: list[int] | None, seed: int, options: dict):
    engine.proposal = proposal
    before = engine.stats()["busy_seconds"]
    (image,) = engine.generate_from_ids(range(5, 25), range(5, 15), seed=seed, **options)
    return image, (engine.stats()["busy_seconds"] - before) * 1e3


def measure(engine: Engine, windows: list[int], rights: list[float], rounds: int, pixels: int) -> list[dict]:
    size = {"height": pixels, "width": pixels, "guidance_scale": 3.0}
    ways = [("plain", 1.0, {"speculation": None})]
    for right in rights:
        ways += [(f"window {w}", right, {"speculation": "jacobi", "draft_window": w}) for w in windows]
        ways.append(("auto", right, {"speculation": "auto"}))
    times: list[list[float]] = [[] for _ in ways]
    steps, verified = [0] * len(ways), [0] * len(ways)
    for seed in range(rounds + 1):
        plain, _ = draw(engine, None, seed, {**size, "speculation": None})
        for i, (_, right, options) in enumerate(ways):
            proposal = corrupted(plain.tokens, right, engine.model.num_codes, seed)
            image, milliseconds = draw(engine, proposal, seed, {**size, **options})
            np.testing.assert_array_equal(image.tokens, plain.tokens)
            if seed > 0:  # the first round brings the estimates about
                times[i].append(milliseconds)
                steps[i] += len(image.accepted_lens)
                verified[i] += int(image.draft_counts[0].sum())
    plain_ms, codes = statistics.median(times[0]), plain.tokens.size
    rows = []
    for i, (name, right, _) in enumerate(ways):
        median, per_picture = statistics.median(times[i]), steps[i] / rounds
        rows.append(
            {
                "way": name,
                "right": right,
                "codes_per_step": round(codes / per_picture, 2),
                "mean_window": round(1 + verified[i] / steps[i], 2),
                "step": round(median / per_picture / (plain_ms / codes), 3),
                "gain": round(plain_ms / median, 2),
            }  # fmt: skip
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint, or default for the embedded model, in place of random weights")
    parser.add_argument("--size", help="of the random weights (default: 0.5b)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--windows", default="2,4,8,16")
    parser.add_argument("--right", default="0.3,0.6,0.8,0.95", help="chances of a draft to be right")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    windows = [int(window) for window in arguments.windows.split(",")]
    rights = [float(right) for right in arguments.right.split(",")]
    with (
        model_folder(arguments.size, arguments.model, default="0.5b") as (folder, _),
        ForcedEngine.from_pretrained(folder, dtype=arguments.dtype, threads=arguments.threads) as engine,
    ):
        engine._core.learns_drafts = False
        engine._pixels = None
        rows = measure(engine, windows, rights, arguments.rounds, arguments.pixels)
    for row in rows:
        print(
            f"{row['way']:10} right {row['right']:4.2f}  {row['codes_per_step']:5.2f} codes a step  "
            f"mean window {row['mean_window']:5.2f}  step {row['step']:.2f}  gain {row['gain']:.2f}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
