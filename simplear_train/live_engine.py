"""An engine that draws with the very parameters that are being trained.

The engine borrows the parameters' memory, on the CPU and on a GPU alike; `refresh` then only tells it that they changed
(it derives its packed copies anew, in place). Parameters that are sharded, or that adapters change, have no memory of
their own that holds what should be drawn with: these are copied into buffers first, and that is the whole difference.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from simplear_engine import Engine
from simplear_engine.generated_image import GeneratedImage
from simplear_engine.image import CosmosTokenizer

from .model_folder import ModelFolder
from .parallel import is_sharded, threads_per_process, whole

# A bound protects a server from its callers. The only caller of a trainer's engine asks for a step's pictures at once.
ROOM_FOR_ANY_STEP = 1 << 20


class LiveEngine:
    """`engine` draws with the weights that `folder.model` had when `refresh` was called last; every process calls it."""

    def __init__(
        self, folder: ModelFolder, dtype: str, threads: int | None = None, max_pairs: int | None = None
    ):  # fmt: skip
        self._folder = folder
        threads = threads_per_process() if threads is None else threads
        own = {p.data_ptr() for p in folder.model.parameters() if not is_sharded(p)}
        first = self._weights()
        self._copies = {name: t.clone() for name, t in first.items() if t.data_ptr() not in own}
        device = next(iter(first.values())).device
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        tokenizer = None
        if folder.image_tokenizer is not None:
            tokenizer = CosmosTokenizer.from_pretrained(folder.image_tokenizer, threads=threads)
        self.engine = Engine.from_weights(
            folder.model.config, {name: self._copies.get(name, t) for name, t in first.items()},
            defaults=folder.defaults, text=folder.text, device=str(device), dtype=dtype, image_tokenizer=tokenizer,
            threads=threads, max_pairs=max_pairs, max_queue=ROOM_FOR_ANY_STEP,
        )  # fmt: skip

    @torch.no_grad()
    def _weights(self) -> Mapping[str, Tensor]:
        return self._folder.canonical({name: whole(p.detach()) for name, p in self._folder.model.named_parameters()})

    @torch.no_grad()
    def refresh(self) -> None:
        """Draws with the parameters as they are now."""
        if self._copies:
            for name, value in self._weights().items():
                if name in self._copies:
                    self._copies[name].copy_(value)
        if self._stream is not None:
            self.engine.wait_stream(self._stream)
        self.engine.weights_changed()

    def release(self) -> None:
        """Says that the parameters may change again. On the CPU nothing reads them between pictures anyway."""
        if self._stream is not None:
            self.engine.release_to_stream(self._stream)


def draw_together(engine: Engine, jobs: list[dict]) -> list[list[GeneratedImage]]:
    """engine.generate_from_ids(**job) for each job, all of them in flight at once; pixels are not waited for."""
    with ThreadPoolExecutor(max_workers=len(jobs), thread_name_prefix="rollout") as callers:
        return list(callers.map(lambda job: engine.generate_from_ids(**job), jobs))


def draw_sheet(engine: Engine, prompts: tuple[str, ...], guidance_scale: float | None, path: Path) -> None:
    """One picture for each prompt, prompt number i with seed i, nothing selected."""
    import numpy as np

    from .contact_sheet import sheet

    pictures = [
        np.asarray(engine.generate(prompt, seed=seed, guidance_scale=guidance_scale)[0].pil)
        for seed, prompt in enumerate(prompts)
    ]
    sheet(pictures, tuple(prompts)).save(path)
