// The noise of guided sampling by itself: noise[p, v] = g(seed[p], position[p], v), g ~ Gumbel(0, 1).
//
// Sampling draws it on the fly (head_sample.h); this op hands it out, for drafts that are sampled elsewhere and to show
// that every backend agrees on it in every bit. Writes P * V elements once.
#pragma once

#include "core/op.h"

namespace simplear {

struct GumbelNoiseParams {
  const uint64_t* seed;     // [P]
  const int32_t* position;  // [P] index of the token, from 0
  float* noise;             // [P, V] out
  int32_t num_rows, num_codes;
};

inline constexpr Field kGumbelNoiseFields[] = {
    SIMPLEAR_FIELD(GumbelNoiseParams, seed),      SIMPLEAR_FIELD(GumbelNoiseParams, position),
    SIMPLEAR_FIELD(GumbelNoiseParams, noise),     SIMPLEAR_FIELD(GumbelNoiseParams, num_rows),
    SIMPLEAR_FIELD(GumbelNoiseParams, num_codes),
};

}  // namespace simplear
