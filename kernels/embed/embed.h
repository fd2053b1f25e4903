// Token embedding: hidden[n] = table[id(n)].
//
//   id(n) = token_ids[n]                              a prompt token
//         = last_code[slot[n]] + visual_offset        when token_ids[n] is -1: the code sampled last for that slot
//
// The second form lets a step use a token that the host has never seen. Reads and writes N * D elements once.
#pragma once

#include "core/op.h"

namespace simplear {

struct EmbedParams {
  const int32_t* token_ids;  // [N] row of the table, or -1
  const int32_t* slot;       // [N] index into last_code, read where token_ids is -1
  const int32_t* last_code;  // [S] codebook indices
  AnyPtr table;              // [V, D] float32 or bfloat16
  float* hidden;             // [N, D] out
  int32_t num_tokens, num_slots, vocab_size, hidden_size;
  int32_t visual_offset;  // table row of code 0
};

inline constexpr Field kEmbedFields[] = {
    SIMPLEAR_FIELD(EmbedParams, token_ids),   SIMPLEAR_FIELD(EmbedParams, slot),
    SIMPLEAR_FIELD(EmbedParams, last_code),   SIMPLEAR_FIELD(EmbedParams, table),
    SIMPLEAR_FIELD(EmbedParams, hidden),      SIMPLEAR_FIELD(EmbedParams, num_tokens),
    SIMPLEAR_FIELD(EmbedParams, num_slots),   SIMPLEAR_FIELD(EmbedParams, vocab_size),
    SIMPLEAR_FIELD(EmbedParams, hidden_size), SIMPLEAR_FIELD(EmbedParams, visual_offset),
};

}  // namespace simplear
