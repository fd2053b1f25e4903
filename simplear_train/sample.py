"""Guided sampling in plain PyTorch: slow, short, and without the engine.

It exists to look at a model while it trains and as a second opinion on the engine; products use simplear_engine.
Each step runs the whole sequence again, there is no cache. Guidance mixes logits,  u + scale * (c - u).
"""

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .model import Qwen2Model
from .text_tokenizer import prompt_ids


@torch.no_grad()
def sample_codes(
    model: Qwen2Model,
    tokenizer: Tokenizer,
    prompts: list[str],
    num_visual: int,
    guidance_scale: float,
    temperature: float,
    seed: int,
) -> Tensor:
    """int64 [len(prompts), num_visual] code indices. Temperature 0 is greedy."""
    offset = tokenizer.get_vocab_size()
    generator = torch.Generator().manual_seed(seed)
    rows = [prompt_ids(tokenizer, p) for p in prompts] + [prompt_ids(tokenizer, "")] * len(prompts)
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()) + num_visual, dtype=torch.int64)
    for target, row in zip(ids, rows):
        target[: len(row)] = torch.tensor(row)
    every_row = torch.arange(len(rows))
    codes = torch.empty(len(prompts), num_visual, dtype=torch.int64)
    for position in range(num_visual):
        hidden = model.hidden(ids[:, : int(lengths.max()) + position])
        logits = model.logits(hidden[every_row, lengths - 1 + position], slice(offset, None)).float()
        conditional, unconditional = logits.chunk(2)
        guided = unconditional + guidance_scale * (conditional - unconditional)
        if temperature > 0:
            probabilities = (guided / temperature).softmax(-1)
            codes[:, position] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        else:
            codes[:, position] = guided.argmax(-1)
        ids[every_row, lengths + position] = codes[:, position].repeat(2) + offset
    return codes
