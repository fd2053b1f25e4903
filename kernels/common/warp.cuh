// Sums and maxima over the 32 threads of a warp, in an order that is always the same. Every thread gets the result.
#pragma once

#include "cuda/launch.h"

namespace simplear::SIMPLEAR_GPU {

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) x += __shfl_xor_sync(0xffffffffu, x, bits);
  return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, bits));
  return x;
}

}  // namespace simplear::SIMPLEAR_GPU
