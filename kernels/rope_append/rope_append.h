// Rotary position embedding (Su et al. 2021, half-split form) of queries and keys, and the append of keys and values
// to the paged cache.
//
//   q, k: (a, b) -> (a cos - b sin, b cos + a sin)   a = first half of a head, b = second half
//
// A cache block holds 16 tokens (kKvBlockSize). Keys lie transposed inside a block, [head_dim, 16], so that attention
// computes 16 scores with no horizontal sum; values lie as [16, head_dim].
// An int8 cache keeps one scale for each token and KV head beside the codes, and so does one in float8_e4m3, on a GPU:
//
//   scale = max |x| / L, code = x / scale rounded to nearest even   x: a rotated key, or a value; L = 127 or 448
//
// A scale is NaN where something in x is not finite.
// Writes the rotated queries densely; the rest of qkv is left alone. A row with slot_mapping -1 (padding) is appended
// nowhere.
#pragma once

#include "core/op.h"

namespace simplear {

constexpr int kKvBlockSize = 16;

struct RopeAppendParams {
  const float* qkv;             // [N, (H + 2 G) E] queries, keys, values
  const float* cos_sin;         // [M, E] row m: cos of position m (E/2), then sin (E/2)
  const int32_t* positions;     // [N] 0-based position in the row's own sequence, < M
  const int32_t* slot_mapping;  // [N] block * 16 + offset, or -1
  float* q;                     // [N, H E] out
  AnyPtr k_cache;               // [B, G, E, 16] in/out, float32, bfloat16, int8 or float8_e4m3
  AnyPtr v_cache;               // [B, G, 16, E] in/out, same dtype
  float* k_scale;               // [B, G, 16] in/out where the cache has one byte a number
  float* v_scale;               // [B, G, 16] in/out likewise
  int32_t num_tokens, num_heads, num_kv_heads, head_dim, num_blocks, num_positions;
};

inline constexpr Field kRopeAppendFields[] = {
    SIMPLEAR_FIELD(RopeAppendParams, qkv),
    SIMPLEAR_FIELD(RopeAppendParams, cos_sin),
    SIMPLEAR_FIELD(RopeAppendParams, positions),
    SIMPLEAR_FIELD(RopeAppendParams, slot_mapping),
    SIMPLEAR_FIELD(RopeAppendParams, q),
    SIMPLEAR_FIELD(RopeAppendParams, k_cache),
    SIMPLEAR_FIELD(RopeAppendParams, v_cache),
    SIMPLEAR_FIELD(RopeAppendParams, k_scale),
    SIMPLEAR_FIELD(RopeAppendParams, v_scale),
    SIMPLEAR_FIELD(RopeAppendParams, num_tokens),
    SIMPLEAR_FIELD(RopeAppendParams, num_heads),
    SIMPLEAR_FIELD(RopeAppendParams, num_kv_heads),
    SIMPLEAR_FIELD(RopeAppendParams, head_dim),
    SIMPLEAR_FIELD(RopeAppendParams, num_blocks),
    SIMPLEAR_FIELD(RopeAppendParams, num_positions),
};

}  // namespace simplear
