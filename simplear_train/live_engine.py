"""An engine that draws with the very parameters that are being trained.

Where parameters are whole and on the CPU the engine borrows their memory; `refresh` then only tells it that they
changed (it derives its packed copies anew, in place). Sharded parameters, and those on another device, are copied into
buffers of the engine's own first, and that is the whole difference.
"""

from pathlib import Path

import torch
from torch import nn

from simplear_engine import Engine
from simplear_engine.image import CosmosTokenizer

from .model_folder import ModelFolder
from .parallel import is_sharded, whole


class LiveEngine:
    """`engine` draws with the weights that `model` had when `refresh` was called last; every process calls it."""

    def __init__(
        self,
        folder: ModelFolder,
        model: nn.Module,
        dtype: str,
        threads: int | None = None,
        max_pairs: int | None = None,
    ):
        self._live = dict(model.named_parameters())
        self._copies = {
            name: torch.empty(p.shape, dtype=p.dtype)
            for name, p in self._live.items()
            if is_sharded(p) or p.device.type != "cpu"
        }
        self._copy()
        tokenizer = None
        if folder.image_tokenizer is not None:
            tokenizer = CosmosTokenizer.from_pretrained(folder.image_tokenizer, threads=threads)
        self.engine = Engine.from_weights(
            folder.model.config,
            {name: self._copies.get(name, p.detach()) for name, p in self._live.items()},
            defaults=folder.defaults, text=folder.text, dtype=dtype, image_tokenizer=tokenizer, threads=threads,
            max_pairs=max_pairs,
        )  # fmt: skip

    @torch.no_grad()
    def _copy(self) -> None:
        for name, copy in self._copies.items():
            copy.copy_(whole(self._live[name]))

    def refresh(self) -> None:
        self._copy()
        self.engine.weights_changed()


def draw_sheet(engine: Engine, prompts: tuple[str, ...], guidance_scale: float | None, path: Path) -> None:
    """One picture for each prompt, prompt number i with seed i, nothing selected."""
    import numpy as np

    from .contact_sheet import sheet

    pictures = [
        np.asarray(engine.generate(prompt, seed=seed, guidance_scale=guidance_scale)[0].pil)
        for seed, prompt in enumerate(prompts)
    ]
    sheet(pictures, tuple(prompts)).save(path)
