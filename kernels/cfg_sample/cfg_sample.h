// Guided sampling: one token per guidance pair from two rows of logits.
//
//   z[v]   = (u[v] + scale * (c[v] - u[v])) / temperature     c, u: conditional / unconditional logits
//   token  = argmax_v  z[v] + g[v]                            over the allowed set, g ~ Gumbel(0, 1)
//
// The allowed set: the top_k largest z (ties with the k-th stay), then the smallest set of largest z that holds at
// least top_p of what is left (ties stay). temperature 0 selects argmax z, no noise. Equal scores: the lowest code
// wins.
//
// g is a pure function of (seed, position, v), see csrc/core/philox.h and gumbel below, so a token depends on its own
// request alone (contract C1). NumPy, C++, CUDA and Triton compute it with the same float32 operations in the same
// order, none fused, and so agree in every bit.
//
// A pair whose guided logits hold a NaN or an infinity gets token -1 and log_prob NaN.
// Reads each logit once (2 * P * V * 4 bytes, the floor); writes and reads z once more.
// Sources: Ho & Salimans 2022 (guidance); Gumbel-max trick; Salmon et al. 2011 (Philox).
#pragma once

#include "core/op.h"

namespace simplear {

struct CfgSampleParams {
  const float* logits;          // [R, V]
  const int32_t* cond_row;      // [P] row of the conditional logits
  const int32_t* uncond_row;    // [P] row of the unconditional ones; -1: no guidance
  const float* guidance_scale;  // [P] unused where uncond_row is -1
  const float* temperature;     // [P] >= 0
  const int32_t* top_k;         // [P] in 1..V
  const float* top_p;           // [P] in (0, 1]
  const uint64_t* seed;         // [P]
  const int32_t* position;      // [P] index of the token being drawn, from 0
  const int32_t* slot;          // [P] entry of last_code that the token goes to
  float* guided;                // [P, V] out: z
  int32_t* token;               // [P] out, 0 <= token < V (codebook index, no text offset), or -1
  float* log_prob;              // [P] out, natural log, of the guided and filtered distribution; 0 at temperature 0
  int32_t* last_code;           // [S] in/out: entry slot[p] becomes token[p] (0 where that is -1)
  int32_t num_pairs, num_rows, num_codes, num_slots;
};

inline constexpr Field kCfgSampleFields[] = {
    SIMPLEAR_FIELD(CfgSampleParams, logits),      SIMPLEAR_FIELD(CfgSampleParams, cond_row),
    SIMPLEAR_FIELD(CfgSampleParams, uncond_row),  SIMPLEAR_FIELD(CfgSampleParams, guidance_scale),
    SIMPLEAR_FIELD(CfgSampleParams, temperature), SIMPLEAR_FIELD(CfgSampleParams, top_k),
    SIMPLEAR_FIELD(CfgSampleParams, top_p),       SIMPLEAR_FIELD(CfgSampleParams, seed),
    SIMPLEAR_FIELD(CfgSampleParams, position),    SIMPLEAR_FIELD(CfgSampleParams, slot),
    SIMPLEAR_FIELD(CfgSampleParams, guided),      SIMPLEAR_FIELD(CfgSampleParams, token),
    SIMPLEAR_FIELD(CfgSampleParams, log_prob),    SIMPLEAR_FIELD(CfgSampleParams, last_code),
    SIMPLEAR_FIELD(CfgSampleParams, num_pairs),   SIMPLEAR_FIELD(CfgSampleParams, num_rows),
    SIMPLEAR_FIELD(CfgSampleParams, num_codes),   SIMPLEAR_FIELD(CfgSampleParams, num_slots),
};

}  // namespace simplear
