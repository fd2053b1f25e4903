"""How many codes does a step yield with drafts, and what does a picture cost then?

    python benchmarks/speculation.py                                   windows of the default model, and what "auto" does
    python benchmarks/speculation.py --sources context,left,above,marginal,previous --windows 8,64
    python benchmarks/speculation.py --images 200 --threads 1          for counts alone, on a machine that is busy
    python benchmarks/speculation.py --sources left --inexact ratio,simplear,neighbours

Draws the same pictures, prompt by prompt, in every way by turns, so that a machine that drifts slows all of them. Each
must equal the one drawn without drafts, or nothing is printed; those of --inexact ways are other pictures. Nothing is
learnt during the measurement unless --learn is given: every picture meets the table of drafts that the checkpoint
brings. Codes a step stand with a 95 % interval over pictures (bootstrap), times are medians over pictures, and "gain"
is the median of plain over this, picture by picture. The last line is JSON.
"""

import argparse
import json
from dataclasses import dataclass, field

import numpy as np

from simplear_engine import Engine
from simplear_engine.sampling import DRAFT_SOURCES, INEXACT, MAX_DRAFT_WINDOW

NOUNS = """apple cat dog car sunflower rocket banana fox tree star house boat guitar crown pizza robot lion whale bee
turtle penguin mushroom key clock balloon""".split()
SETTINGS = {
    "the checkpoint's settings": {},
    "every code, temperature 1": {"top_k": "all"},
    "every code, no guidance": {"top_k": "all", "guidance_scale": 1},
}


def prompts(count: int) -> list[str]:
    """Single objects, several equal ones and pairs by turns; the seed of prompt i is i."""
    made = []
    for i in range(count):
        first, second = NOUNS[i % len(NOUNS)], NOUNS[(i * 7 + 3) % len(NOUNS)]
        made.append((f"a {first}", f"two {first}s", f"a {first} and a {second}", f"a picture of a {first}")[i % 4])
    return made


@dataclass
class Way:
    """One way of drawing, and what came of it."""

    name: str
    options: dict
    lengths: list[np.ndarray] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    verified: np.ndarray = field(default_factory=lambda: np.zeros(MAX_DRAFT_WINDOW - 1, np.int64))
    kept: np.ndarray = field(default_factory=lambda: np.zeros(MAX_DRAFT_WINDOW - 1, np.int64))

    def take(self, image, seconds: float) -> None:
        self.lengths.append(image.accepted_lens)
        self.milliseconds.append(seconds * 1e3)
        for total, counts in zip((self.verified, self.kept), image.draft_counts, strict=True):
            total[: len(counts)] += counts

    def codes_per_step(self) -> tuple[float, float, float]:
        codes = np.array([lengths.sum() for lengths in self.lengths])
        steps = np.array([len(lengths) for lengths in self.lengths])
        chosen = np.random.default_rng(0).integers(0, len(codes), (1000, len(codes)))
        low, high = np.quantile(codes[chosen].sum(1) / steps[chosen].sum(1), [0.025, 0.975])
        return codes.sum() / steps.sum(), low, high

    def summary(self, plain: "Way") -> dict:
        mean, low, high = self.codes_per_step()
        gains = np.array(plain.milliseconds) / np.array(self.milliseconds)
        verified = int((self.verified > 0).sum())
        return {
            "way": self.name,
            "codes_per_step": round(mean, 3),
            "interval": [round(low, 3), round(high, 3)],
            "mean_window": round(1 + self.verified.sum() / sum(len(lengths) for lengths in self.lengths), 2),
            "ms_per_image": round(float(np.median(self.milliseconds)), 2),
            "gain": round(float(np.median(gains)), 3),
            "kept_by_place": [round(k / v, 3) for k, v in zip(self.kept[:verified], self.verified)],
        }


def measure(engine: Engine, ways: list[Way], count: int, options: dict) -> list[dict]:
    for i, prompt in enumerate(prompts(count)):
        expected = None
        for way in ways:
            before = engine.stats()["busy_seconds"]
            (image,) = engine.generate(prompt, seed=i, **options, **way.options)
            way.take(image, engine.stats()["busy_seconds"] - before)
            # Else pixels of one picture would be decoded by turns with the steps of the next.
            if engine.has_image_tokenizer:
                _ = image.pixels
            if image.inexact:
                continue
            expected = expected or image
            np.testing.assert_array_equal(image.tokens, expected.tokens)
            np.testing.assert_array_equal(image.log_probs, expected.log_probs)
    return [way.summary(ways[0]) for way in ways]


def show(name: str, rows: list[dict]) -> None:
    print(name)
    for row in rows:
        low, high = row["interval"]
        print(
            f"  {row['way']:24} {row['codes_per_step']:5.2f} codes a step ({low:.2f} to {high:.2f})  "
            f"mean window {row['mean_window']:5.2f}  {row['ms_per_image']:7.2f} ms  gain {row['gain']:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--windows", default="2,4,8,16,64")
    parser.add_argument("--sources", default="context", help=f"some of {', '.join(DRAFT_SOURCES)}")
    parser.add_argument("--inexact", default="", help=f"some of {', '.join(INEXACT)}: guesses from the left")
    parser.add_argument("--settings", default="0", help="some of 0 (the checkpoint's), 1 (every code), 2 (no guidance)")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--learn", action="store_true", help="let pictures drawn before help those drawn after")
    arguments = parser.parse_args()
    windows = [int(window) for window in arguments.windows.split(",") if window]
    results = {}
    with Engine.from_pretrained(
        arguments.model, device=arguments.device, dtype=arguments.dtype, threads=arguments.threads
    ) as engine:
        for setting in arguments.settings.split(","):
            name, options = list(SETTINGS.items())[int(setting)]
            options = {key: engine.model.num_codes if value == "all" else value for key, value in options.items()}
            ways = [Way("plain", {"speculation": None})]
            for source in arguments.sources.split(","):
                told = {"draft_source": source}
                ways += [
                    Way(f"{source}, window {w}", {**told, "speculation": "jacobi", "draft_window": w}) for w in windows
                ]
                ways.append(Way(f"{source}, auto", {**told, "speculation": "auto"}))
            ways += [
                Way(f"{rule}, window {w}", {"speculation": rule, "draft_window": w})
                for rule in arguments.inexact.split(",")
                if rule
                for w in windows
            ]
            # Costs and chances are estimated while pictures are drawn; a few, not counted, bring the estimates about.
            engine._core.learns_drafts = arguments.learn
            for way in ways:
                engine.generate(prompts(8), seed=1000, **options, **way.options)
            results[name] = measure(engine, ways, arguments.images, options)
            show(name, results[name])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
