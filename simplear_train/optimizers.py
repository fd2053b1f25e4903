"""Which optimizer steps which parameter.

"adamw" steps all of them. "muon" steps the matrices of the layers by Muon (Jordan et al. 2024), whose update is the
momentum with all singular values made one, and leaves the table of embeddings, the head, norms and biases to AdamW.
Updates are scaled to AdamW's usual size (Liu et al. 2025), so that one learning rate serves both; it may be two to five
times AdamW's.

"gains" gives every tensor one number to learn, a factor on all its values, and Adam steps its logarithm: with some fifty
numbers instead of millions a weak signal in much noise is still followed, which is what reinforcement with few pictures
has (docs/decisions/0021-reinforcement-learns-gains.md). A tensor of zeros stays one, and there is no weight decay.
"""

import torch
from torch import Tensor, nn

from simplear_engine.errors import InvalidRequestError

from .precision import multiplies_bfloat16

TABLES = ("embed_tokens", "lm_head")  # a row is a token's own: their matrices are not maps from state to state


# Coefficients of the quintic whose iteration drives singular values into 0.7 .. 1.2 (Jordan et al. 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5


def orthogonalised(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, m, n] -> the same shape, singular values near 1, singular vectors kept; products are computed in `dtype`."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalised(matrices.mT, dtype).mT
    a, b, c = QUINTIC
    x = matrices.to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NUM_ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised. Matrices of one shape are iterated together, and in bfloat16 only where the
    processor multiplies in it: elsewhere such a product takes forty times as long as one of float32."""

    def __init__(self, matrices: list[Tensor], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape: dict[tuple, list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p.grad))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    by_shape.setdefault(tuple(p.shape), []).append((p, p.grad.lerp(buffer, group["momentum"])))
            for shape, pairs in by_shape.items():
                dtype = torch.bfloat16 if multiplies_bfloat16(pairs[0][0].device) else torch.float32
                updates = orthogonalised(torch.stack([update for _, update in pairs]), dtype)
                # The root mean square of an orthogonal matrix, scaled to what AdamW's updates usually have.
                scale = 0.2 * max(shape) ** 0.5
                for (p, _), update in zip(pairs, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"] * scale)


class Gains(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015) on g in p = exp(g) x start, without ever storing start: dL/dg is the sum of p x dL/dp."""

    def __init__(self, params: list[Tensor], lr: float, betas: tuple[float, float], eps: float = 1e-12):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                slope = (p * p.grad).sum()
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), device=p.device)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(slope), torch.zeros_like(slope)
                state["step"] += 1
                state["exp_avg"].lerp_(slope, 1 - beta1)
                state["exp_avg_sq"].lerp_(slope.square(), 1 - beta2)
                mean = state["exp_avg"] / (1 - beta1 ** state["step"])
                spread = (state["exp_avg_sq"] / (1 - beta2 ** state["step"])).sqrt()
                p.mul_((-group["lr"] * mean / (spread + group["eps"])).exp())


def kept_shapes(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, tuple[int, ...]]:
    """{what the optimizer keeps of a parameter: its shape}"""
    if isinstance(optimizer, Muon):
        return {"momentum_buffer": tuple(p.shape)}
    like = () if isinstance(optimizer, Gains) else tuple(p.shape)
    return {"step": (), "exp_avg": like, "exp_avg_sq": like}


def optimizers_for(module: nn.Module, config) -> list[torch.optim.Optimizer]:
    """`config` is the run's LoopConfig. Together they step every parameter that asks for gradients, each once."""
    if config.optimizer != "adamw" and config.sharding != "none":
        raise InvalidRequestError(
            f'loop.optimizer: expected "adamw" where parameters are sharded, because others need them whole; got '
            f'"{config.optimizer}"'
        )
    if config.optimizer == "gains":
        params = [p for p in module.parameters() if p.requires_grad]
        return [Gains(params, config.learning_rate, (config.beta1, config.beta2))]
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
        result.append(Muon(matrices, config.learning_rate, config.weight_decay))
    return result
