// One head of attention among all positions of an image, added to a residual:
//
//   s[i, j] = scale * sum_c q[i, c] * k[j, c]      y[i] = residual[i] + sum_j softmax(s[i])[j] * v[j]
//
// Two matrix products on the register tile. Keys and values of one image are packed once; a block of queries at a time
// keeps its whole rows of scores, so that keys and values are streamed once for each such block and the softmax is
// exact. Products of bfloat16 rows are summed in float32; the weights exp(s - max) are rounded to bfloat16 for the
// second product and divided by their float32 sum at the end. Every sum runs in ascending order of its index (contract
// C2). 4 * B * N^2 * C operations are the floor, N = H * W.
#pragma once

#include "core/op.h"

namespace simplear {

struct SpatialAttentionParams {
  AnyPtr qkv;       // [B, H, W, 3 * C] float32 or bfloat16: query, key, value of each position
  AnyPtr residual;  // [B, H, W, C], dtype of qkv
  AnyPtr y;         // [B, H, W, C] out, dtype of qkv
  int32_t batch, height, width, channels;
  float scale;
};

inline constexpr Field kSpatialAttentionFields[] = {
    SIMPLEAR_FIELD(SpatialAttentionParams, qkv),      SIMPLEAR_FIELD(SpatialAttentionParams, residual),
    SIMPLEAR_FIELD(SpatialAttentionParams, y),        SIMPLEAR_FIELD(SpatialAttentionParams, batch),
    SIMPLEAR_FIELD(SpatialAttentionParams, height),   SIMPLEAR_FIELD(SpatialAttentionParams, width),
    SIMPLEAR_FIELD(SpatialAttentionParams, channels), SIMPLEAR_FIELD(SpatialAttentionParams, scale),
};

}  // namespace simplear
