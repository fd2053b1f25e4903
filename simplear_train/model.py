"""The language model in PyTorch: a Qwen2 decoder whose parameters are the engine's weights.

Names and shapes are those of `simplear_engine.weights.weight_specs`, so an engine can borrow the parameters while they are
being trained, and a saved folder loads in transformers.Qwen2ForCausalLM and gives the same logits there (tested). The
forward pass is written out, so that training code can be read without another library. The table of embeddings
holds text rows first, control tokens next, then one row per visual code.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from simplear_engine.config import ModelConfig

PLAIN_ATTENTION = 256  # positions of a row up to which all scores are stored: 1 MB a sample for four heads


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (self.weight.float() * wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rotary_table(length: int, head_dim: int, theta: float, device) -> tuple[Tensor, Tensor]:
    """cos and sin, each [length, head_dim], in the half-split arrangement."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_dim
        query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query)
        self.k_proj = nn.Linear(config.hidden_size, kv)
        self.v_proj = nn.Linear(config.hidden_size, kv)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            projection(x).view(batch, length, -1, self.head_dim).transpose(1, 2)  # [B, heads, T, D]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        # The fused kernel's backward pass needs short rows on a CPU six times as long as plain products do.
        short = x.device.type == "cpu" and length <= PLAIN_ATTENTION
        with sdpa_kernel(SDPBackend.MATH) if short else contextlib.nullcontext():
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Qwen2Model(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.recompute_layers = False  # gradient checkpointing: keep a layer's input, compute the rest again
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(self._initialise)
        for layer in self.model.layers:
            # Residual branches start small, so that depth does not raise the variance of the stream.
            for branch in (layer.self_attn.o_proj, layer.mlp.down_proj):
                nn.init.normal_(branch.weight, std=0.02 / (2 * config.num_layers) ** 0.5)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    @property
    def head_table(self) -> Tensor:
        """[vocab_size, hidden_size]: what final states are multiplied with."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def hidden(self, ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """int64 [B, T] -> [B, T, hidden_size]; positions are 0..T-1, padding (if any) stands at the end.

        segments: int [B, T]; tokens see earlier ones of their own segment only. Rotary embedding knows differences of
        positions only, so a sample computes the same wherever it stands in a packed row.
        """
        x = self.model.embed_tokens(ids)
        cos, sin = rotary_table(ids.shape[1], self.config.head_dim, self.config.rope_theta, ids.device)
        mask = None
        if segments is not None:
            mask = (segments[:, None, :, None] == segments[:, None, None, :]).tril_()  # [B, 1, T, T]
        for layer in self.model.layers:
            if self.recompute_layers and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, mask, use_reentrant=False)
            else:
                x = layer(x, cos, sin, mask)
        return self.model.norm(x)

    def forward(
        self, ids: Tensor, segments: Tensor | None = None, head: Callable[[Tensor, Tensor], Any] | None = None
    ) -> Any:
        """Logits [B, T, vocab_size], or what `head` makes of (final states, table).

        Losses come in as `head`, because only inside the forward pass are sharded parameters whole.
        """
        hidden = self.hidden(ids, segments)
        return F.linear(hidden, self.head_table) if head is None else head(hidden, self.head_table)
