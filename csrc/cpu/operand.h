// The left operand of a product: rows of activations in the form that the weights want to meet.
//
// float32 and bfloat16 weights take rows of their own type; quantised weights take int8 with one scale for 32
// neighbours. Beside int4 weights, which have scales for 32 of their own, that scale is a power of two: the two are then
// multiplied by an addition of exponents, which does not compete with the dot products. RMSNorm on the way is optional:
//
//   y = x / sqrt(mean(x^2) + eps) * weight         Zhang & Sennrich 2019
//
// What a row becomes depends on that row alone (contract C2). Rows that are in the right form already stay where they
// are; the others are written into scratch that the caller provides.
#pragma once

#include <math.h>

#include "cpu/panels.h"
#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {

struct RowSource {
  AnyPtr x;             // [M, K] float32 or bfloat16
  const int32_t* rows;  // [N] indices into x, or null: the first N
  AnyPtr norm;          // [K] float32 or bfloat16, or null: no RMSNorm
  float eps;
  int64_t num_rows, k;
};

struct Operand {
  const char* data;
  int64_t row_bytes;
  int64_t k;  // as stored: padded for quantised weights

  template <class T>
  const T* row(int64_t n) const {
    return reinterpret_cast<const T*>(data + n * row_bytes);
  }
  // Of a quantised row: integers [k], scales [k / 32] (their exponents, in the place of a float's exponent, beside
  // int4), -zero * (sum of the group's integers), [k / 32], and, beside int4, 1 or NaN for a row with numbers that are
  // none.
  const int8_t* integers(int64_t n) const { return row<int8_t>(n); }
  const float* scales(int64_t n) const { return reinterpret_cast<const float*>(integers(n) + k); }
  const int32_t* exponents(int64_t n) const { return reinterpret_cast<const int32_t*>(scales(n)); }
  const int32_t* offsets(int64_t n) const { return exponents(n) + k / kQuantGroup; }
  float flaw(int64_t n) const { return *reinterpret_cast<const float*>(offsets(n) + k / kQuantGroup); }
};

inline float mean_square(const float* x, int64_t n) {
  Vec sum{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec v = load(x + i);
    sum = fma(v, v, sum);
  }
  float total = reduce_add(sum);
  for (; i < n; ++i) total += x[i] * x[i];
  return total / static_cast<float>(n);
}

constexpr int kGroupVecs = kQuantGroup / kLanes;
using Group = Vec[kGroupVecs];  // kQuantGroup neighbours of a row

// Elements [i, i + kQuantGroup) of a row of k, normalised where `norm` is given; zeros behind its end.
template <class X, class W>
inline void load_group(const X* x, const W* norm, float scale, int64_t i, int64_t k, Group& group) {
  if (i + kQuantGroup <= k) {
    for (int v = 0; v < kGroupVecs; ++v) {
      group[v] = load(x + i + v * kLanes);
      if (norm) group[v] = group[v] * scale * load(norm + i + v * kLanes);
    }
    return;
  }
  float values[kQuantGroup] = {};
  for (int64_t j = 0; i + j < k; ++j)
    values[j] = norm ? to_float(x[i + j]) * scale * to_float(norm[i + j]) : to_float(x[i + j]);
  for (int v = 0; v < kGroupVecs; ++v) group[v] = load(values + v * kLanes);
}

// Largest magnitude of a group; NaN where a number is not finite.
inline float largest_of(const Group& group) {
  Vec most{};
  VecI flaws{};
  for (int v = 0; v < kGroupVecs; ++v) {
    const VecI magnitude = reinterpret_cast<VecI>(group[v]) & 0x7fffffff;
    most = max(reinterpret_cast<Vec>(magnitude), most);
    flaws |= magnitude >= 0x7f800000;
  }
  return any(flaws) ? NAN : reduce_max(most);
}

// A group times `inverse` to integers in -127..127, and -zero times their sum.
inline void round_group(const Group& group, float inverse, int zero, int8_t* q, int32_t* offset) {
  Vec sum{};
  for (int v = 0; v < kGroupVecs; ++v) {
    // The low mantissa bits now hold the rounded number.
    const Vec shifted = group[v] * inverse + 12582912.0f;
    const VecB bytes = __builtin_convertvector(reinterpret_cast<VecI>(shifted) - 0x4b400000, VecB);
    std::memcpy(q + v * kLanes, &bytes, sizeof(bytes));
    sum += shifted - 12582912.0f;
  }
  // Sums of so small integers are exact. Where a number is none, the result is not used.
  const float total = reduce_add(sum);
  *offset = total == total ? -zero * static_cast<int32_t>(total) : 0;
}

// Beside int8. Numbers that are not finite give a scale that is none.
inline void quantize_group(const Group& group, int8_t* q, float* scale, int32_t* offset) {
  const float largest = largest_of(group);
  *scale = largest / 127.0f;
  round_group(group, largest < 1e-35f ? 0.0f : 127.0f / largest, kInt8Zero, q, offset);
}

// Beside int4: the least power of two that leaves no magnitude above 127. False where numbers are not finite, or too
// large for it.
inline bool quantize_group(const Group& group, int8_t* q, int32_t* exponent, int32_t* offset) {
  const float scale = largest_of(group) / 127.0f;
  uint32_t bits;
  std::memcpy(&bits, &scale, 4);
  const int32_t power = static_cast<int32_t>((bits + 0x7fffff) >> 23) - 127;
  const bool is_fine = scale == scale && power <= kMaxActivationPower;
  // What is smaller than all that counts is nothing.
  const bool is_something = is_fine && power >= -kMaxActivationPower;
  const int32_t inverse_bits = is_something ? (127 - power) * (1 << 23) : 0;
  float inverse;
  std::memcpy(&inverse, &inverse_bits, 4);
  *exponent = is_something ? power * (1 << 23) : 0;
  round_group(group, inverse, kInt4Zero, q, offset);
  return is_fine;
}

template <class X, class W>
inline void prepare_row(const RowSource& source, DType weights, const X* x, const W* norm, char* out) {
  const int64_t k = source.k, padded = padded_k(k, weights);
  const float scale = norm ? 1.0f / sqrtf(mean_square(reinterpret_cast<const float*>(x), k) + source.eps) : 1.0f;
  int8_t* integers = reinterpret_cast<int8_t*>(out);
  int32_t* scales = reinterpret_cast<int32_t*>(out + padded);
  int32_t* offsets = scales + padded / kQuantGroup;
  bool is_fine = true;
  for (int64_t i = 0; i < padded; i += kQuantGroup) {
    Group group;
    load_group(x, norm, scale, i, k, group);
    const int64_t g = i / kQuantGroup;
    if (weights == DType::kInt8) {
      quantize_group(group, integers + i, reinterpret_cast<float*>(scales + g), offsets + g);
      continue;
    }
    if (weights == DType::kInt4) {
      is_fine &= quantize_group(group, integers + i, scales + g, offsets + g);
      continue;
    }
    const int64_t bytes = (k - i < kQuantGroup ? k - i : kQuantGroup) * static_cast<int64_t>(size_of(weights));
    if (weights == DType::kFloat32) {
      std::memcpy(out + i * 4, group, bytes);
    } else {
      uint16_t rounded[kQuantGroup];
      for (int v = 0; v < kGroupVecs; ++v) store(rounded + v * kLanes, group[v]);
      std::memcpy(out + i * 2, rounded, bytes);
    }
  }
  const float flaw = is_fine ? 1.0f : NAN;
  if (weights == DType::kInt4) std::memcpy(offsets + padded / kQuantGroup, &flaw, 4);
}

inline bool is_in_place(const RowSource& source, DType weights) {
  return source.x.dtype == weights && source.rows == nullptr && source.norm.data == nullptr;
}

inline int64_t operand_row_bytes(int64_t k, DType weights) {
  const int64_t padded = padded_k(k, weights);
  const int64_t bytes = is_quantized(weights) ? padded + padded / kQuantGroup * 8 + 4 : k * size_of(weights);
  return (bytes + 63) / 64 * 64;
}

// Scratch that prepare() needs.
inline size_t operand_bytes(const RowSource& source, DType weights) {
  return is_in_place(source, weights) ? 0 : source.num_rows * operand_row_bytes(source.k, weights);
}

// A norm needs float32 rows.
inline Operand prepare(const RowSource& source, DType weights, void* scratch, ThreadPool& pool) {
  if (is_in_place(source, weights)) {
    const int64_t row_bytes = source.k * static_cast<int64_t>(size_of(weights));
    return {static_cast<const char*>(source.x.data), row_bytes, source.k};
  }
  const Operand operand{static_cast<const char*>(scratch), operand_row_bytes(source.k, weights),
                        padded_k(source.k, weights)};
  // Rounding does the work of some four simple elements.
  parallel_for(pool, source.num_rows, grain_of(4 * source.k), [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t from = (source.rows ? source.rows[n] : n) * source.k;
      char* out = static_cast<char*>(scratch) + n * operand.row_bytes;
      const auto* narrow_norm = static_cast<const uint16_t*>(source.norm.data);
      const auto* wide_norm = static_cast<const float*>(source.norm.data);
      if (source.x.dtype == DType::kBFloat16)
        prepare_row(source, weights, static_cast<const uint16_t*>(source.x.data) + from, (const float*)nullptr, out);
      else if (source.norm.dtype == DType::kBFloat16)
        prepare_row(source, weights, static_cast<const float*>(source.x.data) + from, narrow_norm, out);
      else prepare_row(source, weights, static_cast<const float*>(source.x.data) + from, wide_norm, out);
    }
  });
  return operand;
}

}  // namespace simplear::SIMPLEAR_ISA
