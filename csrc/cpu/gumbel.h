// Gumbel(0, 1) noise for a run of codes: g = -log(-log(w)), w uniform in (0, 1) from 32 Philox bits.
//
// Only IEEE add, multiply, integer operations and conversions of integers below 2^24: every backend that repeats them
// in this order gets the same bits. Both v and w = 1 - v are formed from the bits themselves, so that the noise is
// finely resolved at both ends: g lies in [-3.14, 22.9] and is never infinite.
#pragma once

#include "core/philox.h"
#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {

// The codes that one call covers: four words for every lane.
constexpr int kNoiseCodes = 4 * kLanes;

// High and low halves of the lane-wise 32 x 32 bit product.
inline void multiply_wide(VecU a, uint32_t b, VecU& high, VecU& low) {
  low = a * b;
#if defined(__AVX512F__)
  const __m512i x = reinterpret_cast<__m512i>(a), y = _mm512_set1_epi32(static_cast<int>(b));
  const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(x, y), 32);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), y);
  high = reinterpret_cast<VecU>(_mm512_mask_blend_epi32(0xAAAA, even, odd));
#elif defined(__AVX2__)
  const __m256i x = reinterpret_cast<__m256i>(a), y = _mm256_set1_epi32(static_cast<int>(b));
  const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(x, y), 32);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), y);
  high = reinterpret_cast<VecU>(_mm256_blend_epi32(even, odd, 0xAA));
#else
  for (int i = 0; i < kLanes; ++i) high[i] = static_cast<uint32_t>((uint64_t{a[i]} * b) >> 32);
#endif
}

// Natural logarithm of normal positive numbers, below 2 ulp (polynomial coefficients as in Cephes logf).
// `f` and `e` are given by the caller: x = (1 + f) * 2^e, f in [sqrt(1/2) - 1, sqrt(2) - 1].
inline Vec log_of_parts(Vec f, Vec e) {
  const Vec f2 = f * f;
  Vec p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  Vec y = p * f * f2;
  y = y + e * -2.12194440e-4f;
  y = y - f2 * 0.5f;
  return (f + y) + e * 0.693359375f;
}

inline void split(Vec x, Vec& f, Vec& e) {
  const VecI bits = reinterpret_cast<VecI>(x);
  // Adding the distance from sqrt(1/2) to 1 makes the exponent field count from sqrt(1/2).
  const VecI shifted = bits + (0x3f800000 - 0x3f3504f3);
  const VecI exponent = (shifted >> 23) - 127;
  e = __builtin_convertvector(exponent, Vec);
  f = reinterpret_cast<Vec>(bits - (exponent << 23)) - 1.0f;
}

// (bits + 1/2) / 2^32, correctly rounded at the small end.
inline Vec unit_interval(VecU bits) {
  const Vec high = __builtin_convertvector(reinterpret_cast<VecI>(bits >> 8), Vec);
  const Vec low = __builtin_convertvector(reinterpret_cast<VecI>(bits & 255u), Vec);
  return (high * 256.0f + (low + 0.5f)) * 2.3283064365386963e-10f;
}

inline Vec gumbel(VecU bits) {
  const Vec v = unit_interval(bits), w = unit_interval(~bits);
  Vec f, e;
  split(w, f, e);
  const VecI near_one = v < 0.25f;
  f = near_one ? -v : f;
  e = near_one ? splat(0.0f) : e;
  const Vec exponential = -log_of_parts(f, e);
  split(exponential, f, e);
  return -log_of_parts(f, e);
}

// Lanes 0 .. L/2 - 1 of a and b by turns; and lanes L/2 .. L - 1.
inline VecU zip_low(VecU a, VecU b) {
  VecI lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i / 2 + i % 2 * kLanes;
  return __builtin_shuffle(a, b, lanes);
}
inline VecU zip_high(VecU a, VecU b) {
  VecI lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = kLanes / 2 + i / 2 + i % 2 * kLanes;
  return __builtin_shuffle(a, b, lanes);
}

// out[4 i + w] = lane i of the w-th vector.
inline void store_interleaved(VecU a, VecU b, VecU c, VecU d, uint32_t* out) {
  const VecU even_low = zip_low(a, c), even_high = zip_high(a, c), odd_low = zip_low(b, d), odd_high = zip_high(b, d);
  store(out, zip_low(even_low, odd_low));
  store(out + kLanes, zip_high(even_low, odd_low));
  store(out + 2 * kLanes, zip_low(even_high, odd_high));
  store(out + 3 * kLanes, zip_high(even_high, odd_high));
}

// bits[i] for codes first .. first + kNoiseCodes - 1, which gumbel() makes noise of; first is a multiple of 4.
inline void random_bits(uint64_t seed, uint32_t position, uint32_t first, uint32_t* bits) {
  VecU c0, c1 = splat(position), c2{}, c3{};
  for (int i = 0; i < kLanes; ++i) c0[i] = first / 4 + static_cast<uint32_t>(i);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    VecU high0, low0, high1, low1;
    multiply_wide(c0, kPhiloxMultiplier0, high0, low0);
    multiply_wide(c2, kPhiloxMultiplier1, high1, low1);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  store_interleaved(c0, c1, c2, c3, bits);
}

// A number that gumbel(bits) is not above minus the logarithm of: -log(1 - v) >= v, and rounding here is downwards.
inline Vec noise_bound(VecU bits) {
  return __builtin_convertvector(reinterpret_cast<VecI>(bits >> 8), Vec) * 5.9604644775390625e-8f;
}

}  // namespace simplear::SIMPLEAR_ISA
