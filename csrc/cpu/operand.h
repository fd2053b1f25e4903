// The left operand of a product: rows of activations in the form that the weights want to meet.
//
// float32 and bfloat16 weights take rows of their own precision (kept as RowType of gemm_tile.h says); quantised
// weights take int8 with one scale for 32 neighbours. RMSNorm on the way is optional:
//
//   y = x / sqrt(mean(x^2) + eps) * weight         Zhang & Sennrich 2019
//
// What a row becomes depends on that row alone (contract C2). Rows that are in the right form already stay where they
// are; the others are written into scratch that the caller provides.
#pragma once

#include <math.h>

#include "cpu/gemm_tile.h"
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

// Whether activations for such weights are kept as 16-bit numbers, the four of a step in the order 0, 2, 1, 3: what
// multiplies bytes without VNNI is an instruction for pairs of 16-bit numbers. With four bits to multiply by, AVX2 and
// up do with bytes, as the sums of two products still fit into 16 bits then.
constexpr bool has_wide_integers([[maybe_unused]] DType weights) {
#if defined(__AVX512VNNI__)
  return false;
#elif defined(__AVX2__)
  return weights == DType::kInt8;
#else
  return is_quantized(weights);
#endif
}
template <bool kWide>
struct StoredIntegerOf {
  using Type = int8_t;
};
template <>
struct StoredIntegerOf<true> {
  using Type = int16_t;
};
template <DType kWeights>
using StoredInteger = typename StoredIntegerOf<has_wide_integers(kWeights)>::Type;

struct Operand {
  const char* data;
  int64_t row_bytes;
  int64_t k;  // as stored: padded for quantised weights

  template <class T>
  const T* row(int64_t n) const {
    return reinterpret_cast<const T*>(data + n * row_bytes);
  }
  // Of a quantised row: integers [k], scales [k / 32], and -zero * (sum of the group's integers), [k / 32].
  int64_t integer_bytes;  // of the k of them
  template <class Integer>
  const Integer* integers(int64_t n) const {
    return row<Integer>(n);
  }
  const float* scales(int64_t n) const { return reinterpret_cast<const float*>(row<char>(n) + integer_bytes); }
  const int32_t* offsets(int64_t n) const { return reinterpret_cast<const int32_t*>(scales(n) + k / kQuantGroup); }
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

// A group to integers in -127..127 with one scale. Numbers that are not finite give a scale that is none.
inline void quantize_group(const Group& group, int zero, int8_t* q, float* scale, int32_t* offset) {
  Vec most{};
  VecI flaws{};
  for (int v = 0; v < kGroupVecs; ++v) {
    const VecI magnitude = reinterpret_cast<VecI>(group[v]) & 0x7fffffff;
    most = max(reinterpret_cast<Vec>(magnitude), most);
    flaws |= magnitude >= 0x7f800000;
  }
  const float largest = reduce_max(most);
  *scale = any(flaws) ? NAN : largest / 127.0f;
  const Vec inverse = splat(largest < 1e-35f ? 0.0f : 127.0f / largest);
  Vec sum{};
  for (int v = 0; v < kGroupVecs; ++v) {
    // The low mantissa bits now hold the rounded number.
    const Vec shifted = group[v] * inverse + 12582912.0f;
    const VecB bytes = __builtin_convertvector(reinterpret_cast<VecI>(shifted) - 0x4b400000, VecB);
    std::memcpy(q + v * kLanes, &bytes, sizeof(bytes));
    sum += shifted - 12582912.0f;
  }
  // Sums of so small integers are exact. Where a number is none, so is the scale, and this does not matter.
  const float total = reduce_add(sum);
  *offset = total == total ? -zero * static_cast<int32_t>(total) : 0;
}

template <class X, class W>
inline void prepare_row(const RowSource& source, DType weights, const X* x, const W* norm, char* out) {
  const int64_t k = source.k, padded = padded_k(k, weights);
  const float scale = norm ? 1.0f / sqrtf(mean_square(reinterpret_cast<const float*>(x), k) + source.eps) : 1.0f;
  const bool is_wide = has_wide_integers(weights);
  float* scales = reinterpret_cast<float*>(out + padded * (is_wide ? 2 : 1));
  int32_t* offsets = reinterpret_cast<int32_t*>(scales + padded / kQuantGroup);
  for (int64_t i = 0; i < padded; i += kQuantGroup) {
    Group group;
    load_group(x, norm, scale, i, k, group);
    if (is_quantized(weights)) {
      const int zero = weights == DType::kInt8 ? kInt8Zero : kInt4Zero;
      int8_t integers[kQuantGroup];
      quantize_group(group, zero, integers, scales + i / kQuantGroup, offsets + i / kQuantGroup);
      if (is_wide) {
        int16_t* wide = reinterpret_cast<int16_t*>(out) + i;
        for (int j = 0; j < kQuantGroup; ++j) wide[j] = integers[j / 4 * 4 + (j % 4 == 1 ? 2 : j % 4 == 2 ? 1 : j % 4)];
      } else {
        std::memcpy(out + i, integers, kQuantGroup);
      }
      continue;
    }
    const int64_t count = k - i < kQuantGroup ? k - i : kQuantGroup;
    if (weights == DType::kFloat32) {
      std::memcpy(out + i * 4, group, count * 4);
    } else {
      uint16_t rounded[kQuantGroup];
      for (int v = 0; v < kGroupVecs; ++v) store(rounded + v * kLanes, group[v]);
      copy_row(rounded, count, reinterpret_cast<RowType<uint16_t>*>(out) + i);
    }
  }
}

// Bytes of an element of a row that is not quantised.
inline int64_t row_element_bytes(DType weights) {
  return weights == DType::kBFloat16 ? sizeof(RowType<uint16_t>) : sizeof(RowType<float>);
}

inline bool is_in_place(const RowSource& source, DType weights) {
  return source.x.dtype == weights && static_cast<int64_t>(size_of(weights)) == row_element_bytes(weights) &&
         source.rows == nullptr && source.norm.data == nullptr;
}

inline int64_t operand_row_bytes(int64_t k, DType weights) {
  const int64_t padded = padded_k(k, weights);
  const int64_t integer_bytes = padded * (has_wide_integers(weights) ? 2 : 1);
  const int64_t bytes =
      is_quantized(weights) ? integer_bytes + padded / kQuantGroup * 8 : k * row_element_bytes(weights);
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
    return {static_cast<const char*>(source.x.data), row_bytes, source.k, 0};
  }
  const int64_t padded = padded_k(source.k, weights);
  const Operand operand{static_cast<const char*>(scratch), operand_row_bytes(source.k, weights), padded,
                        padded * (has_wide_integers(weights) ? 2 : 1)};
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
