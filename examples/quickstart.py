"""A picture from a prompt, with the embedded model, on the CPU.

Run it:

    python examples/quickstart.py "a red apple" apple.png
"""

import sys

from simplear_engine import Engine

prompt, path = sys.argv[1:] if len(sys.argv) == 3 else ("a red apple", "apple.png")
with Engine.from_pretrained("default") as engine:
    (image,) = engine.generate(prompt, seed=7)
image.save(path)
print(f"{path}: {image.width}x{image.height}, seed {image.seed}, {sum(image.timings.values()):.2f} s in the engine")
