// Root-mean-square normalisation of selected rows (Zhang & Sennrich 2019), as Qwen2 has it:
//
//   y[n] = x[r] / sqrt(mean(x[r]^2) + eps) * weight        r = rows[n], or n when rows is absent
//
// Reads and writes N * D elements once. The sum of squares is taken in a fixed order per row.
#pragma once

#include "core/op.h"

namespace simplear {

struct RmsNormParams {
  const float* x;       // [M, D]
  const int32_t* rows;  // [N] rows of x to normalise, or null for the first N
  AnyPtr weight;        // [D] float32 or bfloat16
  AnyPtr y;             // [N, D] out, float32 or bfloat16
  int32_t num_rows, num_source_rows, hidden_size;
  float eps;
};

inline constexpr Field kRmsNormFields[] = {
    SIMPLEAR_FIELD(RmsNormParams, x),           SIMPLEAR_FIELD(RmsNormParams, rows),
    SIMPLEAR_FIELD(RmsNormParams, weight),      SIMPLEAR_FIELD(RmsNormParams, y),
    SIMPLEAR_FIELD(RmsNormParams, num_rows),    SIMPLEAR_FIELD(RmsNormParams, num_source_rows),
    SIMPLEAR_FIELD(RmsNormParams, hidden_size), SIMPLEAR_FIELD(RmsNormParams, eps),
};

}  // namespace simplear
