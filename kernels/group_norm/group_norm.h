// Group normalisation of images, optionally with SiLU:
//
//   mean, var over the H * W positions and the C / G channels of each (image, group)
//   n = (x - mean) / sqrt(var + eps) * weight[c] + bias[c]
//   y = silu ? n / (1 + exp(-n)) : n
//
// Sums are taken over blocks of positions of fixed size, in float32 relative to a value of the block, and added up in
// double in the blocks' order: neither the number of threads nor a mean far from zero changes or spoils them
// (contract C2). Reads x twice and writes y once; the second read comes from cache where the image fits.
// Source: Wu & He 2018.
#pragma once

#include "core/op.h"

namespace simplear {

struct GroupNormParams {
  AnyPtr x;             // [B, H, W, C] float32 or bfloat16
  const float* weight;  // [C]
  const float* bias;    // [C]
  AnyPtr y;             // [B, H, W, C] out, float32 or bfloat16
  int32_t batch, height, width, channels;
  int32_t groups;  // divides channels
  int32_t silu;    // 1: apply SiLU
  float eps;
};

inline constexpr Field kGroupNormFields[] = {
    SIMPLEAR_FIELD(GroupNormParams, x),      SIMPLEAR_FIELD(GroupNormParams, weight),
    SIMPLEAR_FIELD(GroupNormParams, bias),   SIMPLEAR_FIELD(GroupNormParams, y),
    SIMPLEAR_FIELD(GroupNormParams, batch),  SIMPLEAR_FIELD(GroupNormParams, height),
    SIMPLEAR_FIELD(GroupNormParams, width),  SIMPLEAR_FIELD(GroupNormParams, channels),
    SIMPLEAR_FIELD(GroupNormParams, groups), SIMPLEAR_FIELD(GroupNormParams, silu),
    SIMPLEAR_FIELD(GroupNormParams, eps),
};

}  // namespace simplear
