#include "cpu/quantize.h"

#include <cmath>
#include <cstring>

#include "cpu/panels.h"

// This file is compiled for every processor, and quantising half a billion weights is worth wider vectors: the compiler
// makes one version a set and picks at run time. No operation is contracted, so all versions give the same bits.
#if defined(__x86_64__) && defined(__linux__)
#define SIMPLEAR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SIMPLEAR_CLONES
#endif

namespace simplear {
namespace {

constexpr int kErrorLanes = 8;  // partial sums of a squared error, so that it can be vectorised; part of its definition
constexpr float kFactors[] = {1.0f, 0.9375f, 1.0625f, 0.875f, 1.125f};

// To the nearest integer, ties to even, for magnitudes below 2^22.
inline __attribute__((always_inline)) float round_even(float x) { return (x + 12582912.0f) - 12582912.0f; }

// Whether one of them is NaN or infinite.
inline __attribute__((always_inline)) bool has_flaw(const float* weights, int64_t n) {
  uint32_t flaws = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, weights + i, 4);
    flaws |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return flaws != 0;
}

// Largest magnitude of finite weights.
inline __attribute__((always_inline)) float largest(const float* weights, int64_t n) {
  float most = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float magnitude = std::fabs(weights[i]);
    most = magnitude > most ? magnitude : most;
  }
  return most;
}

inline float round_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  std::memcpy(&x, &bits, 4);
  return x;
}

// q[i] = weights[i] / scale, rounded and kept in -8..7; returns the squared error. scale != 0.
inline __attribute__((always_inline)) float round_group(const float* weights, float scale, float* q) {
  const float inverse = 1.0f / scale;
  float errors[kErrorLanes] = {};
  for (int first = 0; first < kQuantGroup; first += kErrorLanes)
    for (int lane = 0; lane < kErrorLanes; ++lane) {
      float rounded = round_even(weights[first + lane] * inverse);
      rounded = rounded > 7.0f ? 7.0f : rounded;
      rounded = rounded < -8.0f ? -8.0f : rounded;
      q[first + lane] = rounded;
      const float error = weights[first + lane] - rounded * scale;
      errors[lane] += error * error;
    }
  float sum = 0.0f;
  for (float error : errors) sum += error;
  return sum;
}

// The chosen scale of a group and its integers. A weight that is no number makes the scale none, so that it is noticed.
inline __attribute__((always_inline)) float quantize_group(const float* weights, float* q) {
  for (int i = 0; i < kQuantGroup; ++i) q[i] = 0.0f;
  if (has_flaw(weights, kQuantGroup)) return NAN;
  const float most = largest(weights, kQuantGroup);
  float extreme = 0.0f;
  for (int i = kQuantGroup; i-- > 0;)
    if (std::fabs(weights[i]) == most) extreme = weights[i];
  float best_scale = 0.0f, best_error = INFINITY;
  for (float factor : kFactors) {
    const float scale = round_to_bf16(extreme / -8.0f * factor);
    // A group of zeros, or of numbers so small that their scale has no inverse.
    if (std::fabs(scale) < 1e-37f) continue;
    float candidate[kQuantGroup];
    const float error = round_group(weights, scale, candidate);
    if (error >= best_error) continue;
    best_error = error;
    best_scale = scale;
    std::memcpy(q, candidate, sizeof(candidate));
  }
  return best_scale;
}

}  // namespace

SIMPLEAR_CLONES void quantize_row_int8(const float* weights, int64_t k, int64_t row, uint8_t* panel) {
  const bool is_flawed = has_flaw(weights, k);
  const float most = is_flawed ? 0.0f : largest(weights, k);
  const float scale = is_flawed ? NAN : most / 127.0f;
  const float inverse = scale < 1e-37f ? 0.0f : 127.0f / most;
  for (int64_t i = 0; i < k; i += 4) {
    uint8_t bytes[4] = {kInt8Zero, kInt8Zero, kInt8Zero, kInt8Zero};
    for (int j = 0; j < 4 && !is_flawed; ++j)
      bytes[j] = static_cast<uint8_t>(static_cast<int>(round_even(weights[i + j] * inverse)) + kInt8Zero);
    std::memcpy(panel + (i / 4 * kPanelRows + row) * 4, bytes, 4);
  }
  std::memcpy(panel + k * kPanelRows + row * 4, &scale, 4);
}

SIMPLEAR_CLONES void quantize_row_int4(const float* weights, int64_t k, int64_t row, uint8_t* panel) {
  for (int64_t group = 0; group < k / kQuantGroup; ++group) {
    uint8_t* block = panel + group / 2 * kInt4BlockBytes;
    float q[kQuantGroup];
    const float scale = quantize_group(weights + group * kQuantGroup, q);
    uint8_t* nibbles = block + group % 2 * kInt4GroupBytes;
    for (int j = 0; j < kQuantGroup / 8; ++j)
      for (int i = 0; i < 4; ++i) {
        const int low = static_cast<int>(q[8 * j + i]) + kInt4Zero,
                  high = static_cast<int>(q[8 * j + 4 + i]) + kInt4Zero;
        nibbles[(j * kPanelRows + row) * 4 + i] = static_cast<uint8_t>(low | high << 4);
      }
    uint32_t bits;
    std::memcpy(&bits, &scale, 4);
    const uint16_t upper = static_cast<uint16_t>(bits >> 16);
    std::memcpy(block + 2 * kInt4GroupBytes + (group % 2 * kPanelRows + row) * 2, &upper, 2);
  }
}

}  // namespace simplear
