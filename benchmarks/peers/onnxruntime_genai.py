"""onnxruntime-genai: its own model builder's weights in blocks of 32, activations rounded to int8 (accuracy level 4).

    python -m peers.onnxruntime_genai serve --work DIR --weights int4

The tied embedding table is quantised with the head. The generator keeps the tokens itself and picks greedily inside the
step; told that no sequence is shorter than the longest, it never ends one. There is no bfloat16 for CPUs.
"""

import json
import subprocess
import sys
from pathlib import Path

from peers import peer
from peers.peer import Variant

TITLE = "onnxruntime-genai"
PACKAGE = "onnxruntime-genai"
REQUIREMENTS = (
    "onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx==1.23.2", "onnx-ir==1.1.0", "torch==2.13.0",
    "transformers==5.23.0", "safetensors==0.8.0", "numpy==2.3.5",
)  # fmt: skip
VARIANTS = {
    "int8": Variant("int8, float32 scale for 32"),
    "int4": Variant("int4, float32 scale for 32"),
}
ABSENT = {"bf16": "its model builder has no bfloat16 for CPUs"}


def convert(checkpoint: Path, folder: Path, weights: str) -> None:
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", folder, "-p", weights]
    options = ["accuracy_level=4", "block_size=32", "algo_config=rtn", "hf_token=false"]
    command = [*builder, "-e", "cpu", "-c", folder / "cache", "--extra_options", *options]
    # Elsewhere, because the builder imports modules of its own by names that our benchmarks have, too.
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=folder.parent)


class Model(peer.Lockstep):
    def __init__(self, folder: Path, weights: str, context: int, steps: int, threads: int):
        import numpy as np
        import onnxruntime_genai as genai

        self._np, self._genai = np, genai
        config = genai.Config(str(folder))
        session = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = genai.Model(config)
        self._length = context + steps + 1
        self._generator = None

    def forget(self) -> None:
        self._generator = None

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(
            batch_size=len(prompts), max_length=self._length, min_length=self._length, do_sample=False
        )
        self._generator = self._genai.Generator(self._model, parameters)
        self._generator.append_tokens(self._np.array(prompts, self._np.int32))
        peer.check_logits(self._generator.get_logits())
        return self.step([])

    def step(self, tokens: list[int]) -> list[int]:
        self._generator.generate_next_token()
        return self._generator.get_next_tokens()


if __name__ == "__main__":
    peer.main(sys.modules[__name__])
