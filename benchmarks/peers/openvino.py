"""OpenVINO: the stateful model that optimum-intel exports, both sequences in one inference.

    python -m peers.openvino serve --work DIR --weights int8

int8 is a scale and zero point an output, int4 symmetric in groups of 64, every layer and the head included; keys and
values are stored as the plugin chooses for each. The plugin is driven directly: OpenVINO's own pipelines sit on the same.
"""

import subprocess
import sys
from pathlib import Path

from peers import peer
from peers.peer import Variant

TITLE = "OpenVINO"
PACKAGE = "openvino"
# The published build belongs to another torch and then keeps transformers from being imported.
UNWANTED = ("torchvision",)
REQUIREMENTS = (
    "openvino==2026.4.1", "openvino-tokenizers==2026.4.1.0", "optimum-intel==2.2.0", "optimum==2.3.0", "nncf==3.4.0",
    "torch==2.13.0", "transformers==5.5.4", "numpy==2.4.6",
)  # fmt: skip
VARIANTS = {
    "bf16": Variant("bf16"),
    "int8": Variant("int8, scale and zero point an output"),
    "int4": Variant("int4, scale for 64"),
}
_EXPORT = {
    "bf16": ["--weight-format", "fp16"],
    "int8": ["--weight-format", "int8"],
    "int4": ["--weight-format", "int4", "--sym", "--group-size", "64", "--ratio", "1.0", "--all-layers"],
}


def convert(checkpoint: Path, folder: Path, weights: str) -> None:
    export = [Path(sys.executable).with_name("optimum-cli"), "export", "openvino", "--model", checkpoint]
    task = ["--task", "text-generation-with-past", "--disable-convert-tokenizer"]
    subprocess.run([*export, *task, *_EXPORT[weights], folder], check=True, stdout=sys.stderr)


class Model(peer.Lockstep):
    def __init__(self, folder: Path, weights: str, context: int, steps: int, threads: int):
        import numpy as np
        import openvino

        self._np = np
        options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        if weights == "bf16":
            options["INFERENCE_PRECISION_HINT"] = "bf16"
        compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", options)
        self._request = compiled.create_infer_request()
        self._position = 0

    def forget(self) -> None:
        self._request.reset_state()
        self._position = 0

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        tokens = self._infer(self._np.array(prompts, self._np.int64))
        peer.check_logits(self._logits)
        return tokens

    def step(self, tokens: list[int]) -> list[int]:
        return self._infer(self._np.array(tokens, self._np.int64)[:, None])

    def _infer(self, ids):
        np = self._np
        num_sequences, count = ids.shape
        end = self._position + count
        positions = np.broadcast_to(np.arange(self._position, end, dtype=np.int64), ids.shape)
        self._request.infer(
            {
                "input_ids": ids,
                "attention_mask": np.ones((num_sequences, end), np.int64),
                "position_ids": np.ascontiguousarray(positions),
                "beam_idx": np.arange(num_sequences, dtype=np.int32),
            },
            share_inputs=True,
        )
        self._position = end
        self._logits = self._request.get_output_tensor(0).data[:, -1]
        return self._logits.argmax(axis=1)


if __name__ == "__main__":
    peer.main(sys.modules[__name__])
