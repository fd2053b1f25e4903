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
// Moved into place, the bits are those of a float32 whose exponent is 120 too small. Numbers only, a NaN is read as
// 480.
__device__ inline float to_float(Float8 x) {
  return __uint_as_float((x.bits & 0x80u) << 24 | (x.bits & 0x7fu) << 20) * 0x1p120f;
}

// Rounded to nearest even; NaN stays NaN.
__device__ inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Of magnitude 448 at most; rounded to nearest even.
__device__ inline Float8 to_float8(float x) {
  const uint32_t bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
  // 23 bits of mantissa become 3, and the exponent's bias goes from 127 to 7; below 2^-6 there are steps of 2^-9.
  const uint32_t code = magnitude < 0x3c800000u ? static_cast<uint32_t>(rintf(fabsf(x) * 512.0f))
                                                : ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);
  return {static_cast<uint8_t>(code | (bits >> 24 & 0x80u))};
}

__device__ inline void store(float* to, float x) { *to = x; }
__device__ inline void store(uint16_t* to, float x) { *to = to_bfloat16(x); }

}  // namespace simplear::SIMPLEAR_GPU
