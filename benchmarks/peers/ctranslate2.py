"""CTranslate2: its own converter's int8 with float32 around it.

    python -m peers.ctranslate2 serve --work DIR --weights int8

It generates whole sequences, so a step is the time between two calls of its per-token callback.
"""

import sys
import time
from pathlib import Path

from peers import peer
from peers.peer import Variant, prompts

TITLE = "CTranslate2"
PACKAGE = "ctranslate2"
REQUIREMENTS = ("ctranslate2==4.8.5", "torch==2.13.0", "transformers==5.23.0", "safetensors==0.8.0", "numpy==2.3.5")
VARIANTS = {"int8": Variant("int8, a scale an output")}
ABSENT = {"bf16": "it has no bfloat16 for this kind of processor", "int4": "it has no int4 for CPUs"}


def convert(checkpoint: Path, folder: Path, weights: str) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(checkpoint)).convert(str(folder / "model"), quantization="int8_float32", force=True)


class Model(peer.Lockstep):
    def __init__(self, folder: Path, weights: str, context: int, steps: int, threads: int):
        import ctranslate2

        self._generator = ctranslate2.Generator(
            str(folder / "model"), device="cpu", compute_type="int8_float32", inter_threads=1, intra_threads=threads
        )

    def run(self, context: int, steps: int) -> dict:
        words = [[str(token) for token in prompt] for prompt in prompts(context)]
        rows, moments = [[] for _ in words], []

        def on_token(result) -> bool:
            rows[result.batch_id].append(result.token_id)
            if all(len(row) == len(rows[0]) for row in rows):
                moments.append(time.perf_counter())
            return False

        self._generator.generate_batch(
            words, max_length=steps + 1, min_length=steps + 1, sampling_topk=1, beam_size=1,
            include_prompt_in_result=False, callback=on_token,
        )  # fmt: skip
        return {"ms": peer.pauses_ms(moments), "tokens": rows}


if __name__ == "__main__":
    peer.main(sys.modules[__name__])
