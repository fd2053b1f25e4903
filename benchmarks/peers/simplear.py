"""Our own engine: one guided picture, that is a conditional and an unconditional sequence, drawn greedily.

    python -m peers.simplear serve --work DIR --weights bf16

Both sequences are fed the same code, the argmax of the guided logits, so the tokens of a timed run are those of one
sequence; the tokens that are compared are drawn without guidance before the first run. The engine reports the time of
all steps of a picture, not of each: every step of a run gets their mean.
"""

import sys
from pathlib import Path

from peers import checkpoint, peer
from peers.peer import Variant, prompts

TITLE = "simplear-engine"
PACKAGE = "simplear-engine"
REQUIREMENTS = None
VARIANTS = {
    "bf16": Variant("bf16"),
    "int8": Variant("int8, a scale an output"),
    "int4": Variant("int4, bfloat16 scale for 32"),
}
_DTYPES = {"bf16": "bfloat16", "int8": "int8", "int4": "int4"}


def convert(checkpoint: Path, folder: Path, weights: str) -> None:
    """Nothing to do: the checkpoint is in our own format."""


class Model(peer.Lockstep):
    def __init__(self, folder: Path, weights: str, context: int, steps: int, threads: int):
        from simplear_engine import Engine

        source = folder.parent.parent.parent / "checkpoint" / "simplear"
        self._engine = Engine.from_pretrained(source, dtype=_DTYPES[weights], threads=threads, max_pairs=1)
        self.alone = checkpoint.greedy_rows(self._engine, context, checkpoint.REFERENCE_TOKENS)

    def run(self, context: int, steps: int) -> dict:
        conditional, unconditional = ([checkpoint.TEXT_TOKENS + i for i in prompt] for prompt in prompts(context))
        image = self._engine.generate_from_ids(
            conditional,
            unconditional,
            height=16 * (steps + 1),
            width=16,
            guidance_scale=3.0,
            temperature=0,
            speculation=None,
        )[0]
        tokens = image.tokens.reshape(-1).tolist()
        return {"ms": [1e3 * image.timings["decode"] / steps] * steps, "tokens": [tokens, tokens], "alone": self.alone}


if __name__ == "__main__":
    peer.main(sys.modules[__name__])
