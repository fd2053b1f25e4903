"""The transformer, written once, as calls on a table of ops.

`forward` is run once per engine with a recording table (backend.Recorder); the C++ engine replays the recording for
every step without Python. With a table of the NumPy references it computes the same thing at once, which is how tests
check the recording. The network is Qwen2's: RMSNorm, grouped-query attention with rotary positions, SwiGLU; its head is
cut down to the visual codes, because nothing else is ever sampled after `<|soi|>`.
"""

from dataclasses import dataclass
from typing import Any

from simplear_engine import _C
from simplear_engine.backend import Rows
from simplear_engine.config import ModelConfig
from simplear_engine.errors import CapacityError
from simplear_engine.kernels.rope_append import BLOCK_SIZE, CODES, bytes_of_key, cos_sin_table


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer: [num_blocks, num_kv_heads, head_dim, 16] and [num_blocks, num_kv_heads, 16, head_dim];
    in int8 and float8_e4m3 with the scales of each, [num_blocks, num_kv_heads, 16]."""

    k: _C.Tensor
    v: _C.Tensor
    k_scale: _C.Tensor | None
    v_scale: _C.Tensor | None


def make_cache(config: ModelConfig, num_blocks: int, dtype: str, zeros=_C.Tensor.zeros) -> list[LayerCache]:
    """zeros(shape, dtype): a new tensor where the ops compute."""
    heads, dim = config.num_kv_heads, config.head_dim

    def scales():
        return zeros([num_blocks, heads, BLOCK_SIZE], "float32") if dtype in CODES else None

    return [
        LayerCache(
            k=zeros([num_blocks, heads, dim, BLOCK_SIZE], dtype),
            v=zeros([num_blocks, heads, BLOCK_SIZE, dim], dtype),
            k_scale=scales(),
            v_scale=scales(),
        )
        for _ in range(config.num_layers)
    ]


def cache_block_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes that one block of 16 tokens takes over all layers."""
    return 2 * config.num_layers * config.num_kv_heads * BLOCK_SIZE * bytes_of_key(config.head_dim, dtype)


class Activations:
    """What the ops of a step hand to each other; sized for the largest step. `dtype` is what rows are kept in on their way
    into a product ("float32" or "bfloat16")."""

    def __init__(self, config: ModelConfig, plan: _C.StepPlan, dtype: str, backend):
        max_tokens, max_logit_rows, max_draws = plan.token_ids.shape[0], plan.logit_rows.shape[0], plan.token.shape[0]
        query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

        def per_token(width: int, dtype: str = "float32") -> Rows:
            return Rows(backend.zeros([max_tokens, width], dtype), "num_tokens")

        self.hidden = per_token(config.hidden_size)
        self.qkv = per_token(query + 2 * kv)
        self.q = per_token(query)
        self.attended = per_token(query, dtype)
        self.gated = per_token(config.intermediate_size, dtype)
        # Pages of these two are touched by scoring and by top-k or top-p only.
        self.logits = Rows(backend.zeros([max_logit_rows, config.num_codes], "float32"), "num_logit_rows")
        self.guided = Rows(backend.zeros([max_draws, config.num_codes], "float32"), "num_draws")
        positions = config.max_position_embeddings
        try:
            table = cos_sin_table(positions, config.head_dim, config.rope_theta)
        except MemoryError as error:
            raise CapacityError(f"max_position_embeddings: no memory for {positions} positions: {error}") from None
        self.cos_sin = backend.resident(_C.Tensor.from_numpy(table))


class History:
    """What the steps of a device leave for each other and for the host: the codes of each image so far, and what the last
    `length` steps drew."""

    def __init__(self, config: ModelConfig, plan: _C.StepPlan, length: int, backend):
        slots, draws = plan.last_code.shape[0], plan.token.shape[0]
        self.codes = backend.zeros([slots, config.max_position_embeddings], "int32")
        self.step = backend.zeros([1], "int32")
        self.drawn_token = backend.zeros([length, draws], "int32")
        self.drawn_log_prob = backend.zeros([length, draws], "float32")


def forward(
    ops: Any, weights: Any, plan: _C.StepPlan, cache: list[LayerCache], a: Activations, history: History | None = None
) -> None:
    """One step: every query row of the plan through the network, every draw to its code.

    ops: table of ops. weights: see model_weights.ModelWeights. plan, cache, a: buffers at fixed addresses. With a history,
    the step also turns the plan into that of the next step.
    """
    config = weights.config

    def tokens(tensor):
        return Rows(tensor, "num_tokens")

    def seqs(tensor):
        return Rows(tensor, "num_seqs")

    def draws(tensor):
        return Rows(tensor, "num_draws")

    eps = config.rms_norm_eps
    ops.embed(
        token_ids=tokens(plan.token_ids), slot=tokens(plan.token_slot), last_code=plan.last_code,
        table=weights.embedding, hidden=a.hidden, visual_offset=config.visual_offset,
    )  # fmt: skip
    for layer, kv in zip(weights.layers, cache, strict=True):
        ops.linear(x=a.hidden, norm_weight=layer.input_norm, eps=eps, weight=layer.qkv, bias=layer.qkv_bias, y=a.qkv)
        ops.rope_append(
            qkv=a.qkv, cos_sin=a.cos_sin, positions=tokens(plan.positions), slot_mapping=tokens(plan.slot_mapping),
            q=a.q, k_cache=kv.k, v_cache=kv.v, k_scale=kv.k_scale, v_scale=kv.v_scale,
        )  # fmt: skip
        ops.paged_attention(
            q=a.q, k_cache=kv.k, v_cache=kv.v, k_scale=kv.k_scale, v_scale=kv.v_scale,
            query_start_loc=plan.query_start_loc,
            context_lens=seqs(plan.context_lens), block_table=seqs(plan.block_table), out=a.attended,
            scale=config.head_dim**-0.5,
        )  # fmt: skip
        ops.linear(x=a.attended, weight=layer.o, y=a.hidden, accumulate=1)
        ops.gate_up_silu(x=a.hidden, norm_weight=layer.post_norm, eps=eps, weight=layer.gate_up, y=a.gated)
        ops.linear(x=a.gated, weight=layer.down, y=a.hidden, accumulate=1)
    ops.head_sample(
        hidden=a.hidden, rows=Rows(plan.logit_rows, "num_logit_rows"), norm_weight=weights.norm, eps=eps,
        weight=weights.head, cond_row=draws(plan.cond_row), uncond_row=draws(plan.uncond_row),
        guidance_scale=draws(plan.guidance_scale), temperature=draws(plan.temperature), top_k=draws(plan.top_k),
        top_p=draws(plan.top_p), seed=draws(plan.seed), position=draws(plan.position), slot=draws(plan.draw_slot),
        logits=a.logits, guided=a.guided, token=draws(plan.token), log_prob=draws(plan.log_prob),
        last_code=plan.last_code,
    )  # fmt: skip
    if history is None:
        return

    def windows(tensor):
        return Rows(tensor, "num_windows")

    ops.verify_drafts(
        window_start_loc=plan.window_start_loc, window_seqs=windows(plan.window_seqs),
        draft_source=windows(plan.draft_source), draft_width=windows(plan.draft_width),
        logit_rows=Rows(plan.logit_rows, "num_logit_rows"), cond_row=draws(plan.cond_row),
        uncond_row=draws(plan.uncond_row), draw_slot=draws(plan.draw_slot), token=draws(plan.token),
        log_prob=draws(plan.log_prob), block_table=seqs(plan.block_table), token_ids=tokens(plan.token_ids),
        positions=tokens(plan.positions), slot_mapping=tokens(plan.slot_mapping),
        context_lens=seqs(plan.context_lens), position=draws(plan.position), last_code=plan.last_code,
        codes=history.codes, step=history.step, drawn_token=history.drawn_token,
        drawn_log_prob=history.drawn_log_prob, visual_offset=config.visual_offset,
    )  # fmt: skip
