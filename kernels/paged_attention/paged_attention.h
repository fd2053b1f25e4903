// Causal attention over a paged cache, for sequences that bring any number of queries each (prefill chunk, one decode
// token, a draft window).
//
//   out[n, h] = sum_j softmax_j(scale * q[n, h] . k[j, h / (H/G)]) v[j, h / (H/G)]      j = 0 .. position(n)
//
// Query n of sequence s, the i-th of its Q, stands at position context_lens[s] - Q + i. The order of additions is fixed
// by the absolute positions of the keys, so the result of a row depends on its own sequence alone (contract C2); on the
// CPU, chunks of 128 keys are merged in order (Milakov & Gimelshein 2018). Reads every key and value once for all heads
// that share it. Cache entries past a query's position may hold anything.
// Sequences without queries have context 0 (padding), and so have rows from query_start_loc[S] on, which belong to no
// sequence: `out` of those is left as it is.
#pragma once

#include "core/op.h"
#include "kernels/rope_append/rope_append.h"

namespace simplear {

struct PagedAttentionParams {
  const float* q;        // [N, H E] rotated queries
  AnyPtr k_cache;        // [B, G, E, 16] float32, bfloat16, int8 or, on a GPU, float8_e4m3
  AnyPtr v_cache;        // [B, G, 16, E] same dtype
  const float* k_scale;  // [B, G, 16] of a cache of one byte a number: what a key's codes are to be multiplied by
  const float* v_scale;  // [B, G, 16] likewise
  const int32_t*
      query_start_loc;          // [S + 1] first query of each sequence; the last entry is the number of queries, <= N
  const int32_t* context_lens;  // [S] keys of each sequence, those of this step included
  const int32_t* block_table;   // [S, T] cache blocks in order of position
  AnyPtr out;                   // [N, H E] in/out, float32 or bfloat16
  float scale;                  // usually 1 / sqrt(E)
  int32_t num_tokens, num_seqs, num_heads, num_kv_heads, head_dim, num_blocks, max_blocks_per_seq;
};

inline constexpr Field kPagedAttentionFields[] = {
    SIMPLEAR_FIELD(PagedAttentionParams, q),
    SIMPLEAR_FIELD(PagedAttentionParams, k_cache),
    SIMPLEAR_FIELD(PagedAttentionParams, v_cache),
    SIMPLEAR_FIELD(PagedAttentionParams, k_scale),
    SIMPLEAR_FIELD(PagedAttentionParams, v_scale),
    SIMPLEAR_FIELD(PagedAttentionParams, query_start_loc),
    SIMPLEAR_FIELD(PagedAttentionParams, context_lens),
    SIMPLEAR_FIELD(PagedAttentionParams, block_table),
    SIMPLEAR_FIELD(PagedAttentionParams, out),
    SIMPLEAR_FIELD(PagedAttentionParams, scale),
    SIMPLEAR_FIELD(PagedAttentionParams, num_tokens),
    SIMPLEAR_FIELD(PagedAttentionParams, num_seqs),
    SIMPLEAR_FIELD(PagedAttentionParams, num_heads),
    SIMPLEAR_FIELD(PagedAttentionParams, num_kv_heads),
    SIMPLEAR_FIELD(PagedAttentionParams, head_dim),
    SIMPLEAR_FIELD(PagedAttentionParams, num_blocks),
    SIMPLEAR_FIELD(PagedAttentionParams, max_blocks_per_seq),
};

}  // namespace simplear
