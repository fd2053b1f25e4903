"""The language model in PyTorch: a Qwen2 decoder under Hugging Face's parameter names.

The forward pass is written out, so that training code can be read without another library; the folder it saves loads
in transformers.Qwen2ForCausalLM and in simplear_engine, and gives the same logits there (tested). Embedding and
output head are one tied table: text rows first, control tokens next, then one row per visual code.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Qwen2Config:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 1024

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def to_json(self, dtype: str) -> dict:
        """config.json as Hugging Face writes it."""
        return {
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **asdict(self), "hidden_act": "silu",
            "attention_dropout": 0.0, "initializer_range": 0.02, "tie_word_embeddings": True, "use_cache": True,
            "use_sliding_window": False, "torch_dtype": dtype, "bos_token_id": None, "eos_token_id": None,
        }  # fmt: skip


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
    def __init__(self, config: Qwen2Config):
        super().__init__()
        self.config = config
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, kv_size)
        self.v_proj = nn.Linear(config.hidden_size, kv_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            projection(x).view(batch, length, -1, self.config.head_dim).transpose(1, 2)  # [B, heads, T, D]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, config: Qwen2Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: Qwen2Config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: Qwen2Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Qwen2Model(nn.Module):
    """`hidden` gives final states, `logits` scores them against a range of the tied table."""

    def __init__(self, config: Qwen2Config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.apply(self._initialise)
        for layer in self.model.layers:
            # Residual branches start small, so that depth does not raise the variance of the stream.
            for branch in (layer.self_attn.o_proj, layer.mlp.down_proj):
                nn.init.normal_(branch.weight, std=0.02 / (2 * config.num_hidden_layers) ** 0.5)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def hidden(self, ids: Tensor) -> Tensor:
        """int64 [B, T] -> [B, T, hidden_size]; positions are 0..T-1, padding (if any) stands at the end."""
        x = self.model.embed_tokens(ids)
        cos, sin = rotary_table(ids.shape[1], self.config.head_dim, self.config.rope_theta, ids.device)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.model.norm(x)

    def logits(self, hidden: Tensor, rows: slice = slice(None)) -> Tensor:
        return F.linear(hidden, self.model.embed_tokens.weight[rows])

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(self.hidden(ids))


def save_hf_folder(model: Qwen2Model, folder: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = model.config.to_json(str(dtype).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_hf_folder(folder: Path) -> Qwen2Model:
    from safetensors.torch import load_file

    entry = json.loads((folder / "config.json").read_text())
    model = Qwen2Model(Qwen2Config(**{name: entry[name] for name in Qwen2Config.__dataclass_fields__ if name in entry}))
    model.load_state_dict({name: value.float() for name, value in load_file(str(folder / "model.safetensors")).items()})
    return model.eval()
