// First half of a SwiGLU block (Shazeer 2020), after RMSNorm:
//
//   z = x / sqrt(mean(x^2) + eps) * norm_weight
//   y[n, i] = silu(sum_k z[n, k] * gate[i, k]) * sum_k z[n, k] * up[i, k],    silu(g) = g / (1 + exp(-g))
//
// gate and up are packed by turns, 32 rows of each, so that both sums of an output come out of the same pass and only
// their product is written. Rounding and order of additions as in linear.h.
#pragma once

#include "core/op.h"

namespace simplear {

struct GateUpSiluParams {
  AnyPtr x;            // [N, K] float32
  AnyPtr norm_weight;  // [K] float32 or bfloat16
  AnyPtr weight;       // packed by turns [2 I, K], float32, bfloat16, int8 or int4
  AnyPtr y;            // [N, I] out, float32 or bfloat16
  int32_t num_rows, hidden_size, intermediate_size;
  float eps;
};

inline constexpr Field kGateUpSiluFields[] = {
    SIMPLEAR_FIELD(GateUpSiluParams, x),
    SIMPLEAR_FIELD(GateUpSiluParams, norm_weight),
    SIMPLEAR_FIELD(GateUpSiluParams, weight),
    SIMPLEAR_FIELD(GateUpSiluParams, y),
    SIMPLEAR_FIELD(GateUpSiluParams, num_rows),
    SIMPLEAR_FIELD(GateUpSiluParams, hidden_size),
    SIMPLEAR_FIELD(GateUpSiluParams, intermediate_size),
    SIMPLEAR_FIELD(GateUpSiluParams, eps),
};

}  // namespace simplear
