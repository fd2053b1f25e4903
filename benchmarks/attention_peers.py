"""Attention kernels of others on the bench cases of paged_attention: what `gpu_tables.py` compares ours with.

torch's own (a contiguous cache, what it picks is usually FlashAttention) always, flash-attn and FlashInfer (paged caches)
where they are installed. Each is checked against the op's reference, then timed as our ops are: a CUDA graph that goes
round through copies of its arguments, so that keys and values come from memory.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from simplear_engine.kernels.op import Case
from simplear_engine.kernels.paged_attention import OP, lengths_of

FLASH_PAGE = 256  # tokens in a block: flash-attn takes multiples of it


@dataclass(frozen=True)
class Problem:
    """A bench case with contiguous keys. All of its sequences are equally long and have equally many queries."""

    q: torch.Tensor  # [S, Q, H, E]
    k: torch.Tensor  # [S, T, G, E]
    v: torch.Tensor  # [S, T, G, E]
    scale: float
    wanted: np.ndarray  # float32 [S * Q, H * E]

    def copy(self) -> "Problem":
        return Problem(self.q.clone(), self.k.clone(), self.v.clone(), self.scale, self.wanted)


Attend = Callable[[], torch.Tensor]  # on tensors that stay where they are; returns [S, Q, H, E]


def cases() -> list[Case]:
    return [case for case in OP.bench_cases if case.dtypes["k_cache"] == "bfloat16"]


def problem(case: Case, device: str) -> Problem:
    def rounded(array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, torch.bfloat16)

    a = case.axes
    arrays = OP.make_inputs(case, np.random.default_rng(0))
    arrays = {
        name: array.astype(np.float32) if array.dtype.kind == "f" else array
        for name, array in arrays.items()
    }  # fmt: skip
    for name in ("q", "k_cache", "v_cache"):  # what the peers see in bfloat16, the reference has to see, too
        arrays[name] = rounded(arrays[name]).float().cpu().numpy()
    (length, *_), (queries, *_) = lengths_of(a)
    positions = np.arange(length)
    block, offset = arrays["block_table"][:, positions // 16], positions % 16
    k = arrays["k_cache"][block, :, :, offset]
    v = arrays["v_cache"][block, :, offset, :]
    q = arrays["q"].reshape(a["S"], queries, a["H"], a["E"])
    return Problem(
        rounded(q), rounded(k), rounded(v), case.scalars["scale"], OP.reference(**arrays, **case.scalars)["out"]
    )


def torch_attention(p: Problem) -> Attend:
    from torch.nn.attention.bias import causal_lower_right

    q, k, v = (x.transpose(1, 2).contiguous() for x in (p.q, p.k, p.v))
    num_queries, num_keys = q.shape[2], k.shape[2]
    if num_queries == 1:
        # All heads of a group as queries of one head: the keys are then read once.
        grouped = q.view(q.shape[0], k.shape[1], -1, q.shape[3])
        return lambda: F.scaled_dot_product_attention(grouped, k, v, scale=p.scale).view_as(q).transpose(1, 2)
    mask = causal_lower_right(num_queries, num_keys)
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=p.scale, enable_gqa=True).transpose(
        1, 2
    )


def flash_attention(p: Problem) -> Attend:
    from flash_attn import flash_attn_with_kvcache

    k, v, table = pages_of(p, FLASH_PAGE)
    lengths = torch.full((len(p.q),), p.k.shape[1], dtype=torch.int32, device=p.q.device)
    return lambda: flash_attn_with_kvcache(
        p.q, k, v, cache_seqlens=lengths, block_table=table, softmax_scale=p.scale, causal=True
    )


def flash_infer(p: Problem) -> Attend:
    import flashinfer

    num_seqs, num_queries, num_heads, dim = p.q.shape
    k, v, table = pages_of(p, 16)
    device, num_pages = p.q.device, table.shape[1]
    workspace = torch.empty(128 << 20, dtype=torch.uint8, device=device)
    starts = torch.arange(num_seqs + 1, dtype=torch.int32, device=device)
    last = torch.full((num_seqs,), (p.k.shape[1] - 1) % 16 + 1, dtype=torch.int32, device=device)
    pages = (starts * num_pages, table.flatten(), last, num_heads, p.k.shape[2], dim, 16)
    settings = {"sm_scale": p.scale, "q_data_type": torch.bfloat16}
    if num_queries == 1:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD")
        wrapper.plan(*pages, **settings)
    else:
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
        wrapper.plan(starts * num_queries, *pages, causal=True, **settings)
    q = p.q.flatten(0, 1)
    return lambda: wrapper.run(q, (k, v)).view_as(p.q)


PEERS: dict[str, tuple[str, Callable[[Problem], Attend]]] = {
    # name -> the package that it comes from, how to prepare it
    "torch": ("torch", torch_attention),
    "flash-attn": ("flash_attn", flash_attention),
    "FlashInfer": ("flashinfer", flash_infer),
}


def pages_of(p: Problem, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(k, v [blocks, size, G, E], int32 block table [S, blocks of a sequence]); what lies behind the end is zero."""
    num_seqs, length = p.k.shape[:2]
    num_pages = -(-length // size)
    k, v = (
        F.pad(x, (0, 0, 0, 0, 0, num_pages * size - length)).reshape(num_seqs * num_pages, size, *x.shape[2:])
        for x in (p.k, p.v)
    )
    table = torch.arange(num_seqs * num_pages, dtype=torch.int32, device=p.k.device).view(num_seqs, num_pages)
    return k, v, table


def check(attend: Attend, p: Problem) -> None:
    """Bfloat16 inside and out: a twentieth of the values' deviation is far above its noise, far below an error."""
    difference = np.abs(attend().float().flatten(0, 1).flatten(1).cpu().numpy() - p.wanted).max() / p.wanted.std()
    if not difference < 0.05:
        raise ValueError(f"its results are {difference:.2f} deviations from the reference")


def installed() -> Iterator[tuple[str, Callable[[Problem], Attend] | None]]:
    """(name, how to prepare it; None where its package is missing)"""
    for name, (package, prepare) in PEERS.items():
        yield name, prepare if importlib.util.find_spec(package) else None


def microseconds(prepare: Callable[[Problem], Attend], p: Problem, cache_bytes: int) -> float:
    """Of one call on the GPU: the fastest of five rounds of four replays."""
    copies = max(1, min(24, math.ceil(cache_bytes / (p.k.nbytes + p.v.nbytes))))
    attends = [prepare(p.copy()) for _ in range(copies)]
    check(attends[0], p)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for attend in attends:
            attend()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for attend in attends:
                attend()
        times = []
        for _ in range(5):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(4):
                graph.replay()
            end.record()
            end.synchronize()
            times.append(1e3 * begin.elapsed_time(end) / (4 * copies))
    return min(times)
