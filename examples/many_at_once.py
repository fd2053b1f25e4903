"""Several threads share one engine; each picture is the same as if it had been drawn alone.

Run it:

    python examples/many_at_once.py
"""

from concurrent.futures import ThreadPoolExecutor

from simplear_engine import Engine
from simplear_engine.png import contact_sheet

PROMPTS = ["a red apple", "a cat", "two dogs", "a blue car", "a sunflower", "a rocket"]

with Engine.from_pretrained("default", max_pairs=len(PROMPTS)) as engine:
    alone = engine.generate(PROMPTS[0], seed=1)[0]
    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        images = list(threads.map(lambda prompt: engine.generate(prompt, seed=1)[0], PROMPTS))
    assert (images[0].tokens == alone.tokens).all()
    contact_sheet([image.pil for image in images], PROMPTS).save("many_at_once.png")
print("many_at_once.png: the first picture is bit for bit the one drawn alone")
