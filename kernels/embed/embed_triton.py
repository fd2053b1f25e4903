"""Token embedding in Triton: one program copies one row."""

import triton
import triton.language as tl

from simplear_engine.kernels.triton_launch import Launch, fields, power_of_2


@triton.jit
def embed_row(token_ids, slot, last_code, table, hidden, visual_offset, D: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0)
    token = tl.load(token_ids + n)
    sampled = token < 0
    code = tl.load(last_code + tl.load(slot + n, mask=sampled, other=0))
    row = tl.where(sampled, code + visual_offset, token).to(tl.int64)
    d = tl.arange(0, BLOCK)
    values = tl.load(table + row * D + d, mask=d < D)
    tl.store(hidden + n.to(tl.int64) * D + d, values.to(tl.float32), mask=d < D)


def launches(p, scratch):
    yield Launch(
        embed_row,
        (p.num_tokens,),
        fields(p, "token_ids", "slot", "last_code", "table", "hidden", "visual_offset"),
        {"D": p.hidden_size, "BLOCK": power_of_2(p.hidden_size)},
    )
