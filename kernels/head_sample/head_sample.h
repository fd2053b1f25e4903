// The end of a step: RMSNorm, visual head, guidance and one sampled code per draw, in one pass over the head's weights.
//
//   l[r, v] = sum_k norm(hidden[rows[r]])[k] * weight[v, k]             rounding and order as in linear.h
//   z[v]    = (u[v] + scale * (c[v] - u[v])) / temperature              c, u: conditional / unconditional l
//   token   = argmax_v  z[v] + g[v]                                     over the allowed set, g ~ Gumbel(0, 1)
//
// The allowed set: the top_k largest z (ties with the k-th stay), then the smallest set of largest z that holds at
// least top_p of what is left (ties stay). temperature 0 selects argmax z, no noise. Equal scores: the lowest code
// wins.
//
// g is a pure function of (seed, position, v), see csrc/core/philox.h and csrc/cpu/gumbel.h, so a token depends on its
// own request alone (contract C1). NumPy, C++, CUDA and Triton compute it with the same float32 operations in the same
// order, none fused, and so agree in every bit. A draw whose z holds a NaN or an infinity gets token -1 and log_prob
// NaN.
//
// Reading the weights once is the floor. Logits live in cache for 1,024 codes at a time and are stored only where
// somebody needs all of them: z of a draw that is filtered by top_k or top_p, and l of a row that no draw refers to
// (scoring).
// Sources: Ho & Salimans 2022 (guidance); Gumbel-max trick; Salmon et al. 2011 (Philox).
#pragma once

#include "core/op.h"

namespace simplear {

struct HeadSampleParams {
  const float* hidden;          // [M, K]
  const int32_t* rows;          // [R] rows of hidden that reach the head
  AnyPtr norm_weight;           // [K] float32 or bfloat16
  AnyPtr weight;                // packed [V, K], float32, bfloat16, int8 or int4
  const int32_t* cond_row;      // [P] row in 0..R-1 of the conditional logits
  const int32_t* uncond_row;    // [P] row of the unconditional ones; -1: no guidance
  const float* guidance_scale;  // [P] unused where uncond_row is -1
  const float* temperature;     // [P] >= 0
  const int32_t* top_k;         // [P] in 1..V
  const float* top_p;           // [P] in (0, 1]
  const uint64_t* seed;         // [P]
  const int32_t* position;      // [P] index of the token being drawn, from 0
  const int32_t* slot;          // [P] entry of last_code that the token goes to
  float* logits;                // [R, V] in/out: l of rows that no draw refers to; other rows stay as they are
  float* guided;                // [P, V] in/out: z of draws with top_k < V or top_p < 1; others stay as they are
  int32_t* token;               // [P] out, 0 <= token < V (codebook index, no text offset), or -1
  float* log_prob;              // [P] out, natural log, of the guided and filtered distribution; 0 at temperature 0
  int32_t* last_code;           // [S] in/out: entry slot[p] becomes token[p] (0 where that is -1)
  int32_t num_rows, num_source_rows, hidden_size, num_draws, num_codes, num_slots;
  float eps;
};

inline constexpr Field kHeadSampleFields[] = {
    SIMPLEAR_FIELD(HeadSampleParams, hidden),
    SIMPLEAR_FIELD(HeadSampleParams, rows),
    SIMPLEAR_FIELD(HeadSampleParams, norm_weight),
    SIMPLEAR_FIELD(HeadSampleParams, weight),
    SIMPLEAR_FIELD(HeadSampleParams, cond_row),
    SIMPLEAR_FIELD(HeadSampleParams, uncond_row),
    SIMPLEAR_FIELD(HeadSampleParams, guidance_scale),
    SIMPLEAR_FIELD(HeadSampleParams, temperature),
    SIMPLEAR_FIELD(HeadSampleParams, top_k),
    SIMPLEAR_FIELD(HeadSampleParams, top_p),
    SIMPLEAR_FIELD(HeadSampleParams, seed),
    SIMPLEAR_FIELD(HeadSampleParams, position),
    SIMPLEAR_FIELD(HeadSampleParams, slot),
    SIMPLEAR_FIELD(HeadSampleParams, logits),
    SIMPLEAR_FIELD(HeadSampleParams, guided),
    SIMPLEAR_FIELD(HeadSampleParams, token),
    SIMPLEAR_FIELD(HeadSampleParams, log_prob),
    SIMPLEAR_FIELD(HeadSampleParams, last_code),
    SIMPLEAR_FIELD(HeadSampleParams, num_rows),
    SIMPLEAR_FIELD(HeadSampleParams, num_source_rows),
    SIMPLEAR_FIELD(HeadSampleParams, hidden_size),
    SIMPLEAR_FIELD(HeadSampleParams, num_draws),
    SIMPLEAR_FIELD(HeadSampleParams, num_codes),
    SIMPLEAR_FIELD(HeadSampleParams, num_slots),
    SIMPLEAR_FIELD(HeadSampleParams, eps),
};

}  // namespace simplear
