// Numbers as they lie in memory, and float32. A bfloat16 is the upper half of a float32.
#pragma once

#include "cuda/launch.h"

namespace simplear::SIMPLEAR_GPU {

// float8_e4m3: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinity.
struct Float8 {
  uint8_t bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(int8_t x) { return static_cast<float>(x); }
__device__ inline float to_float(uint16_t x) { return __uint_as_float(uint32_t{x} << 16); }

// Rounded to nearest even; NaN stays NaN.
__device__ inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

__device__ inline void store(float* to, float x) { *to = x; }
__device__ inline void store(uint16_t* to, float x) { *to = to_bfloat16(x); }

}  // namespace simplear::SIMPLEAR_GPU
