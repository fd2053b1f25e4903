// Finite scalar quantisation, index to code (Mentzer et al. 2023, as in the Cosmos tokenizers):
//
//   digit_d = (index / basis_d) mod level_d      basis_d = product of the levels before d
//   code_d  = (digit_d - level_d / 2) / (level_d / 2)     integer halves
//
// Exact in float32. Reads N and writes N * D elements once.
#pragma once

#include "core/op.h"

namespace simplear {

struct FsqDecodeParams {
  const int32_t* indices;  // [N] in 0 .. product(levels) - 1
  const int32_t* levels;   // [D]
  float* codes;            // [N, D] out, in [-1, 1]
  int32_t num_indices, num_dims;
};

inline constexpr Field kFsqDecodeFields[] = {
    SIMPLEAR_FIELD(FsqDecodeParams, indices),  SIMPLEAR_FIELD(FsqDecodeParams, levels),
    SIMPLEAR_FIELD(FsqDecodeParams, codes),    SIMPLEAR_FIELD(FsqDecodeParams, num_indices),
    SIMPLEAR_FIELD(FsqDecodeParams, num_dims),
};

}  // namespace simplear
