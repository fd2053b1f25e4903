"""A guided picture drawn in plain torch: what `gpu_tables.py` compares the engine with, where nothing but torch is installed.

The usual recipe of a fast decoder: static caches, both guidance rows in one batch, one step recorded as a CUDA graph and
replayed without a host read, compiled by torch.compile where that works. Full attention over the whole cache under a
mask, as static caches have it.
"""

import time

import torch
import torch.nn.functional as F

from simplear_engine.config import ModelConfig
from simplear_engine.weights import LM_HEAD


class TorchDecoder:
    """`rows` sequences in lockstep, each of `length` tokens at most; weights: canonical name -> tensor on the device."""

    def __init__(self, config: ModelConfig, weights: dict[str, torch.Tensor], rows: int, length: int):
        self.config, self.weights, self.rows = config, weights, rows
        table = weights["model.embed_tokens.weight"]
        self.device, self.dtype = table.device, table.dtype
        self.head = (table if config.tie_word_embeddings else weights[LM_HEAD])[config.visual_offset :]
        shape = (config.num_layers, rows, config.num_kv_heads, length, config.head_dim)
        self.k, self.v = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        half = torch.arange(0, config.head_dim, 2, device=self.device, dtype=torch.float32) / config.head_dim
        angles = torch.arange(length, device=self.device, dtype=torch.float32)[:, None] * config.rope_theta**-half
        self.cos, self.sin = angles.cos(), angles.sin()
        self.places = torch.arange(length, device=self.device)
        self.token = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.position = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.scale = torch.zeros((), device=self.device)

    def logits(self) -> torch.Tensor:
        """float32 [rows, codes] behind the token at the present position, whose keys and values are kept."""
        c, w = self.config, self.weights
        cos, sin = self.cos[self.position], self.sin[self.position]
        seen = (self.places <= self.position)[None, None, None]

        def norm(x, weight):
            x = x.float()
            return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + c.rms_norm_eps)).to(self.dtype) * weight

        def rotated(x):
            a, b = x.float().chunk(2, dim=-1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(self.dtype)

        x = w["model.embed_tokens.weight"][self.token]
        for layer in range(c.num_layers):
            name = f"model.layers.{layer}."
            h = norm(x, w[name + "input_layernorm.weight"])
            q, k, v = (
                F.linear(h, w[f"{name}self_attn.{p}_proj.weight"], w[f"{name}self_attn.{p}_proj.bias"])
                .view(self.rows, -1, c.head_dim)
                for p in "qkv"
            )  # fmt: skip
            self.k[layer].index_copy_(2, self.position, rotated(k)[:, :, None])
            self.v[layer].index_copy_(2, self.position, v[:, :, None])
            attended = F.scaled_dot_product_attention(
                rotated(q)[:, :, None], self.k[layer], self.v[layer], attn_mask=seen, enable_gqa=True
            )
            x = x + F.linear(attended.reshape(self.rows, -1), w[name + "self_attn.o_proj.weight"])
            h = norm(x, w[name + "post_attention_layernorm.weight"])
            gated = F.silu(F.linear(h, w[name + "mlp.gate_proj.weight"])) * F.linear(h, w[name + "mlp.up_proj.weight"])
            x = x + F.linear(gated, w[name + "mlp.down_proj.weight"])
        return F.linear(norm(x, w["model.norm.weight"]), self.head).float()

    def step(self) -> None:
        """Draws the next code of every pair of rows, guided, and moves on."""
        cond, uncond = self.logits().chunk(2)
        guided = uncond + self.scale * (cond - uncond)
        # An exponential race: the smallest of e / p is a draw from p.
        race = torch.empty_like(guided).exponential_().log()
        code = (guided - race).argmax(-1)
        self.token.copy_((code + self.config.visual_offset).repeat(2))
        self.position += 1

    @torch.no_grad()
    def read(self, ids: list[int]) -> torch.Tensor:
        """Takes a prompt in, the same for all rows; the logits behind its last token."""
        for position, token in enumerate(ids):
            self.position.fill_(position)
            self.token.fill_(token)
            found = self.logits()
        return found

    @torch.no_grad()
    def seconds_per_step(self, steps: int, scale: float, compiled: bool) -> float:
        """Of `steps` steps from the present position on, replayed as one graph each; needs a GPU."""
        self.scale.fill_(scale)
        step = torch.compile(self.step, mode="max-autotune-no-cudagraphs") if compiled else self.step
        begin = self.position.clone()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        self.position.copy_(begin)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            graph.replay()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / steps
