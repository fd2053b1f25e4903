// Reads memory and does next to nothing with it: the yardstick of every kernel that streams weights.
//
//   xor_of[t] = x[begin_t] ^ x[begin_t + 1] ^ ...      over the t-th of T equal parts
//
// T is the number of threads and must divide the work into whole cache lines for a clean figure; the result keeps the
// compiler from leaving the reads out.
#pragma once

#include "core/op.h"

namespace simplear {

struct ReadStreamParams {
  const int32_t* x;  // [N]
  int32_t* xor_of;   // [T] out
  int32_t num_values, num_parts;
};

inline constexpr Field kReadStreamFields[] = {
    SIMPLEAR_FIELD(ReadStreamParams, x),
    SIMPLEAR_FIELD(ReadStreamParams, xor_of),
    SIMPLEAR_FIELD(ReadStreamParams, num_values),
    SIMPLEAR_FIELD(ReadStreamParams, num_parts),
};

}  // namespace simplear
