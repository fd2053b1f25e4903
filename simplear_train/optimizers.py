"""Which optimizer steps which parameter.

"adamw" steps all of them. "muon" steps the matrices of the layers by Muon (Jordan et al. 2024), whose update is the
momentum with all singular values made one, and leaves the table of embeddings, the head, norms and biases to AdamW.
Updates are scaled to AdamW's usual size (Liu et al. 2025), so that one learning rate serves both; it may be two to five
times AdamW's.
"""

import torch
from torch import nn

from simplear_engine.errors import InvalidRequestError

TABLES = ("embed_tokens", "lm_head")  # a row is a token's own: their matrices are not maps from state to state


def optimizers_for(module: nn.Module, config) -> list[torch.optim.Optimizer]:
    """`config` is the run's LoopConfig. Together they step every parameter that asks for gradients, each once."""
    if config.optimizer == "muon" and config.sharding != "none":
        raise InvalidRequestError(
            'loop.optimizer: expected "adamw" where parameters are sharded, because Muon needs whole matrices; got "muon"'
        )
    matrices, decayed, others = [], [], []
    for name, p in module.named_parameters():
        if not p.requires_grad:
            continue
        if config.optimizer == "muon" and p.ndim == 2 and not any(table in name for table in TABLES):
            matrices.append(p)
        elif p.ndim >= 2 if config.decay == "matrices" else not name.endswith("bias"):
            decayed.append(p)
        else:
            others.append(p)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    result = [torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))]
    if matrices:
        result.append(
            torch.optim.Muon(
                matrices, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return result
