"""What `image` runs as a process of its own: one cold picture, then pictures in batches. Run as a file, not a module.

Nothing of the package is imported before the clock runs. The last line of stdout is JSON: seconds by phase, seconds a
picture for each batch size, and the digests of all pictures.
"""

import time

STARTED = time.clock_gettime(time.CLOCK_MONOTONIC)

import hashlib  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402

# Modules beside this file are no top-level modules.
del sys.path[0]


def digest(image) -> str:
    return hashlib.sha256(image.tokens.tobytes() + image.pixels.tobytes()).hexdigest()


def main() -> None:
    asked = json.loads(sys.argv[1])
    clock = time.perf_counter
    begin = clock()
    from simplear_engine import Engine

    imported = clock()
    engine = Engine.from_pretrained(
        asked["model"], dtype=asked["dtype"], threads=asked["threads"], max_pairs=max(asked["batches"])
    )
    loaded = clock()
    draw = {"height": asked["pixels"], "width": asked["pixels"]}
    with engine:
        (first,) = engine.generate(asked["prompt"], seed=0, **draw)
        drawn = clock()
        assert first.pixels.shape[0] == 3
        decoded = clock()
        digests = {0: digest(first)}
        seconds = {}
        for batch in asked["batches"]:
            # Pictures that nobody has drawn yet: speculation would know them by heart.
            seed = len(digests)
            start = clock()
            images = engine.generate(asked["prompt"], seed=seed, num_images=batch, **draw)
            for image in images:
                assert image.pixels.shape[0] == 3
            seconds[batch] = (clock() - start) / batch
            digests.update((image.seed, digest(image)) for image in images)
            (alone,) = engine.generate(asked["prompt"], seed=images[-1].seed, **draw)
            if digest(alone) != digests[alone.seed]:
                sys.exit(f"seed {alone.seed}: the picture of a batch of {batch} is another one")
        phases = {
            "start": STARTED - asked["clock"],
            "import": imported - begin,
            "load": loaded - imported,
            "prompt": first.timings["queue"] + first.timings["prefill"],
            "codes": first.timings["decode"],
            "pixels": decoded - drawn,
        }
        total = decoded - begin + phases["start"]
        # Text and hand-over between threads: what no phase claims.
        phases["other"] = total - sum(phases.values())
        phases["first picture"] = total
    print(
        json.dumps(
            {
                "phases": phases,
                "seconds_per_image": seconds,
                "digests": digests,
                "size": [first.height, first.width],
                "dtype": engine.dtype,
            }
        )
    )


if __name__ == "__main__":
    main()
