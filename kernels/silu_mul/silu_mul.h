// The gate of a SwiGLU block (Shazeer 2020): y[n, i] = silu(g) * u with g = gate_up[n, i], u = gate_up[n, I + i],
// silu(g) = g / (1 + exp(-g)). Reads 2 * N * I and writes N * I elements once.
#pragma once

#include "core/op.h"

namespace simplear {

struct SiluMulParams {
  const float* gate_up;  // [N, 2 I] gate, then up
  AnyPtr y;              // [N, I] out, float32 or bfloat16
  int32_t num_rows, intermediate_size;
};

inline constexpr Field kSiluMulFields[] = {
    SIMPLEAR_FIELD(SiluMulParams, gate_up),
    SIMPLEAR_FIELD(SiluMulParams, y),
    SIMPLEAR_FIELD(SiluMulParams, num_rows),
    SIMPLEAR_FIELD(SiluMulParams, intermediate_size),
};

}  // namespace simplear
