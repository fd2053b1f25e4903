"""Finite scalar quantisation, index to code, in Triton: one program for a run of indices."""

import triton
import triton.language as tl

from simplear_engine.kernels.triton_launch import Launch, fields, tiles

INDICES = 256  # of a program


@triton.jit
def decode(indices, levels, codes, num_indices, D: tl.constexpr, INDICES: tl.constexpr):
    n = tl.program_id(0) * INDICES + tl.arange(0, INDICES)
    rest = tl.load(indices + n, mask=n < num_indices, other=0)
    for d in tl.static_range(D):
        level = tl.load(levels + d)
        half = level // 2
        code = tl.div_rn((rest % level - half).to(tl.float32), half.to(tl.float32) + tl.zeros([INDICES], tl.float32))
        tl.store(codes + n * D + d, code, mask=n < num_indices)
        rest = rest // level


def launches(p, scratch):
    yield Launch(
        decode,
        (tiles(p.num_indices, INDICES),),
        fields(p, "indices", "levels", "codes", "num_indices"),
        {"D": p.num_dims, "INDICES": INDICES},
    )
