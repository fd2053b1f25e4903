// Matrix product with a weight matrix that was packed at load, after an optional RMSNorm:
//
//   z = norm_weight ? x / sqrt(mean(x^2) + eps) * norm_weight : x
//   y[n, m] = (accumulate ? y[n, m] : 0) + bias[m] + sum_k z[n, k] * weight[m, k]
//
// float32 and bfloat16 weights: z is rounded to the weights' type, products and sums are float32, and each output is
// summed over k in ascending order. int8 and int4 weights: z becomes int8 with one scale for 32 neighbours, sums over
// such a group are exact integers, and groups are added in float32 in ascending order (csrc/cpu/panels.h). Either way
// an output depends on its own row only, whatever N is (contract C2).
//
// At decode N is a handful of rows, and reading the weights once is the floor (2, 1 or 0.56 bytes each); at prefill the
// arithmetic is.
#pragma once

#include "core/op.h"

namespace simplear {

struct LinearParams {
  AnyPtr x;            // [N, K] float32 or bfloat16; float32 with a norm
  AnyPtr norm_weight;  // [K] float32 or bfloat16, or null
  AnyPtr weight;       // packed [M, K]: float32, bfloat16, int8 or int4
  const float* bias;   // [M] or null
  AnyPtr y;            // [N, M] in/out, float32 or bfloat16
  int32_t num_rows, in_features, out_features;
  int32_t accumulate;  // 1: add to y (float32 only)
  float eps;
};

inline constexpr Field kLinearFields[] = {
    SIMPLEAR_FIELD(LinearParams, x),           SIMPLEAR_FIELD(LinearParams, norm_weight),
    SIMPLEAR_FIELD(LinearParams, weight),      SIMPLEAR_FIELD(LinearParams, bias),
    SIMPLEAR_FIELD(LinearParams, y),           SIMPLEAR_FIELD(LinearParams, num_rows),
    SIMPLEAR_FIELD(LinearParams, in_features), SIMPLEAR_FIELD(LinearParams, out_features),
    SIMPLEAR_FIELD(LinearParams, accumulate),  SIMPLEAR_FIELD(LinearParams, eps),
};

}  // namespace simplear
