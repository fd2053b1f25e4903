// Matrix product with a weight matrix that was packed at load:
//
//   y[n, m] = (accumulate ? y[n, m] : 0) + bias[m] + sum_k x[n, k] * weight[m, k]
//
// Products and sums in float32. x and weight have the same type. At decode N is a handful of rows, and reading the
// M * K weights once is the floor; at prefill the arithmetic is. Each output is summed over k in ascending order,
// whatever N is (contract C2).
#pragma once

#include "core/op.h"

namespace simplear {

struct LinearParams {
  AnyPtr x;           // [N, K] float32 or bfloat16
  AnyPtr weight;      // packed [M, K] in panels of 16 rows (csrc/cpu/panels.h), same dtype as x
  const float* bias;  // [M] or null
  AnyPtr y;           // [N, M] in/out, float32 or bfloat16
  int32_t num_rows, in_features, out_features;
  int32_t accumulate;  // 1: add to y (float32 only)
};

inline constexpr Field kLinearFields[] = {
    SIMPLEAR_FIELD(LinearParams, x),
    SIMPLEAR_FIELD(LinearParams, weight),
    SIMPLEAR_FIELD(LinearParams, bias),
    SIMPLEAR_FIELD(LinearParams, y),
    SIMPLEAR_FIELD(LinearParams, num_rows),
    SIMPLEAR_FIELD(LinearParams, in_features),
    SIMPLEAR_FIELD(LinearParams, out_features),
    SIMPLEAR_FIELD(LinearParams, accumulate),
};

}  // namespace simplear
