"""The one table of canonical weight names and shapes.

Names are those of Hugging Face's Qwen2 and matrices are [out, in], row-major. Loader, trainer, engine and random
checkpoints all read this table, so a weight exists everywhere or nowhere. It knows no values and no files.
"""

from dataclasses import dataclass

from simplear_engine.config import ModelConfig

LM_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class WeightSpec:
    """What one weight must look like."""

    shape: tuple[int, ...]


def weight_specs(config: ModelConfig) -> dict[str, WeightSpec]:
    """Every weight of the network in the order of the forward pass; `lm_head.weight` only where it is not tied."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    in_layer = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (query, hidden),
        "self_attn.q_proj.bias": (query,),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.k_proj.bias": (kv,),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.v_proj.bias": (kv,),
        "self_attn.o_proj.weight": (hidden, query),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    shapes = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in in_layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, hidden)
    return {name: WeightSpec(shape) for name, shape in shapes.items()}
