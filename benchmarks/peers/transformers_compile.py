"""Hugging Face transformers under torch.compile: inductor, frozen weights, a static cache of exactly the run's length.

    python -m peers.transformers_compile serve --work DIR --weights bf16

The compiled step goes from two tokens to two tokens, the argmax included. Compiling takes minutes, before the timing.
"""

import os
import sys
from pathlib import Path

from peers import peer
from peers.peer import Variant

TITLE = "transformers, torch.compile"
PACKAGE = "transformers"
REQUIREMENTS = ("torch==2.13.0", "transformers==5.23.0", "safetensors==0.8.0", "numpy==2.3.5")
VARIANTS = {"bf16": Variant("bf16")}


def convert(checkpoint: Path, folder: Path, weights: str) -> None:
    (folder / "model").symlink_to(checkpoint)


class Model(peer.Lockstep):
    backend = "inductor"

    def __init__(self, folder: Path, weights: str, context: int, steps: int, threads: int):
        # What was compiled is found again by the next process.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "compiled"))
        import torch
        import torch._inductor.config
        from transformers import AutoModelForCausalLM, StaticCache

        self._torch = torch
        torch.set_num_threads(threads)
        torch._inductor.config.freezing = True
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16).eval()
        self._model = model
        self._cache = StaticCache(config=model.config, max_cache_len=context + steps + 1)

        def step(ids, positions):
            logits = model(
                input_ids=ids, position_ids=positions, past_key_values=self._cache, use_cache=True, logits_to_keep=1
            ).logits
            return logits[:, -1].argmax(dim=-1, keepdim=True)

        self._step = torch.compile(step, backend=self.backend, dynamic=False)
        self._position = 0

    def forget(self) -> None:
        self._cache.reset()
        self._position = 0

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        torch = self._torch
        ids = torch.tensor(prompts)
        with torch.no_grad():
            logits = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits
        self._position = ids.shape[1]
        peer.check_logits(logits.float().numpy())
        return logits[:, -1].argmax(dim=-1).tolist()

    def step(self, tokens: list[int]) -> list[int]:
        torch = self._torch
        positions = torch.full((len(tokens), 1), self._position)
        with torch.no_grad():
            following = self._step(torch.tensor(tokens)[:, None], positions)
        self._position += 1
        return following[:, 0].tolist()


if __name__ == "__main__":
    peer.main(sys.modules[__name__])
