// Gumbel(0, 1) noise of four codes at a time: the operations of csrc/cpu/gumbel.h in the same order, none fused, so
// that every bit agrees. Whoever includes this is compiled without contraction of products and sums (--fmad=false).
#pragma once

#include "core/philox.h"
#include "cuda/launch.h"

namespace simplear::SIMPLEAR_GPU {

__device__ inline uint4 philox4(uint64_t key, uint4 counter) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#pragma unroll
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint32_t high0 = __umulhi(kPhiloxMultiplier0, counter.x), low0 = kPhiloxMultiplier0 * counter.x;
    const uint32_t high1 = __umulhi(kPhiloxMultiplier1, counter.z), low1 = kPhiloxMultiplier1 * counter.z;
    counter = make_uint4(high1 ^ counter.y ^ k0, low1, high0 ^ counter.w ^ k1, low0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return counter;
}

// log((1 + f) * 2^e).
__device__ inline float log_of_parts(float f, float e) {
  const float f2 = f * f;
  float p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  float y = p * f * f2;
  y = y + e * -2.12194440e-4f;
  y = y - f2 * 0.5f;
  return (f + y) + e * 0.693359375f;
}

__device__ inline void split_parts(float x, float& f, float& e) {
  const int32_t bits = __float_as_int(x);
  const int32_t exponent = ((bits + (0x3f800000 - 0x3f3504f3)) >> 23) - 127;
  e = static_cast<float>(exponent);
  f = __int_as_float(bits - (exponent << 23)) - 1.0f;
}

__device__ inline float unit_interval(uint32_t bits) {
  const float high = static_cast<float>(bits >> 8), low = static_cast<float>(bits & 255u);
  return (high * 256.0f + (low + 0.5f)) * 2.3283064365386963e-10f;
}

__device__ inline float gumbel(uint32_t bits) {
  const float v = unit_interval(bits), w = unit_interval(~bits);
  float f, e;
  split_parts(w, f, e);
  const bool is_near_one = v < 0.25f;
  const float exponential = -log_of_parts(is_near_one ? -v : f, is_near_one ? 0.0f : e);
  split_parts(exponential, f, e);
  return -log_of_parts(f, e);
}

// Noise of codes 4 i .. 4 i + 3.
__device__ inline float4 gumbel_noise4(uint64_t seed, int32_t position, uint32_t i) {
  const uint4 words = philox4(seed, make_uint4(i, static_cast<uint32_t>(position), 0, 0));
  return make_float4(gumbel(words.x), gumbel(words.y), gumbel(words.z), gumbel(words.w));
}

}  // namespace simplear::SIMPLEAR_GPU
