// The register tile of products with int8 and int4 weights: MR rows of int8 activations times NV
// vectors of a panel's rows.
//
//   sum[r][m] = sum over groups g of 32:  xs[r][g] * ws[m][g] * sum_k q_x[r][k] * q_w[m][k]
//
// The inner sums are integers and exact, whatever instruction adds them. Stored weights are unsigned (q + zero),
// because vpdpbusd multiplies unsigned by signed bytes; sums begin at -zero * sum_k q_x, which makes up for it. Groups
// are added in float32, in ascending order (contract C2).
#pragma once

#include "cpu/gemm_tile.h"
#include "cpu/operand.h"

namespace simplear::SIMPLEAR_ISA {

#if defined(__AVX512F__)
constexpr int quant_tile_rows(DType) { return 3; }  // times 4 vectors: 12 integer and 12 float sums of 32 registers
constexpr int quant_tile_vectors(DType, int) { return 4; }
#elif defined(__AVX2__)
constexpr int quant_tile_rows(DType weights) { return weights == DType::kInt4 ? 4 : 3; }
constexpr int quant_tile_vectors(DType, int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }
#else
constexpr int quant_tile_rows(DType) { return 1; }
constexpr int quant_tile_vectors(DType, int) { return 4; }
#endif

constexpr int kInt8GroupSteps = kQuantGroup / 4, kInt4GroupSteps = kQuantGroup / 8;

typedef int16_t VecS __attribute__((vector_size(kLanes * 4)));
typedef uint16_t VecUS __attribute__((vector_size(kLanes * 4)));

// Lane by lane, the sum of the two products of signed 16-bit numbers.
inline VecI madd(VecS a, VecS b) {
#if defined(__AVX512F__)
  return reinterpret_cast<VecI>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<VecI>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<VecI>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  const VecI x = reinterpret_cast<VecI>(a), y = reinterpret_cast<VecI>(b);
  return (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
#endif
}

#if defined(__AVX2__)
// In 16 bits, the sums of two products of the unsigned bytes of w with the signed ones of x.
inline VecS dot2(VecU w, VecU x) {
#if defined(__AVX512F__)
  return reinterpret_cast<VecS>(_mm512_maddubs_epi16(reinterpret_cast<__m512i>(w), reinterpret_cast<__m512i>(x)));
#else
  return reinterpret_cast<VecS>(_mm256_maddubs_epi16(reinterpret_cast<__m256i>(w), reinterpret_cast<__m256i>(x)));
#endif
}
#endif

#if defined(__AVX512VNNI__)
// Lane by lane, sum + the products of the four unsigned bytes of w with the four signed ones of x.
inline VecI dot4(VecI sum, VecU w, VecU x) {
  return reinterpret_cast<VecI>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(w), reinterpret_cast<__m512i>(x)));
}
#endif

template <int MR, int NV, DType kWeights>
struct QuantizedTile {
  using Integers = StoredInteger<kWeights>;

  // Groups [first_group, end_group) of rows first_row .. first_row + MR - 1, added to `sums` (kPanelRows floats from
  // one row to the next) or, with the first group, put there. panel: its first byte; column: the tile's first in it.
  template <class A>
  static inline void run(const Operand& x, int64_t first_row, const uint8_t* panel, int64_t column, float* sums,
                         int64_t first_group, int64_t end_group, const A& ahead) {
    const Integers* q[MR];
    const float* scales[MR];
    const int32_t* offsets[MR];
    for (int r = 0; r < MR; ++r) {
      q[r] = x.integers<Integers>(first_row + r);
      scales[r] = x.scales(first_row + r);
      offsets[r] = x.offsets(first_row + r);
    }
    Tile<MR, NV> tile;
    if (first_group == 0) tile.clear();
    else tile.load_sums(sums, kPanelRows);
    for (int64_t g = first_group; g < end_group; ++g) {
      VecI dots[MR][NV];
#pragma GCC unroll 32
      for (int r = 0; r < MR; ++r)
#pragma GCC unroll 32
        for (int v = 0; v < NV; ++v) dots[r][v] = splat(offsets[r][g]);
      Vec weight_scales[NV];
      if constexpr (kWeights == DType::kInt8) {
        add_int8(dots, q, panel + (g * kQuantGroup * kPanelRows + column * 4), g, ahead,
                 (g - first_group) * kInt8GroupSteps);
      } else {
        const uint8_t* block = panel + g / 2 * kInt4BlockBytes;
        // A block has two groups of steps and its scales.
        const int64_t first_step = (g / 2 - first_group / 2) * (2 * kInt4GroupSteps + 1) + g % 2 * kInt4GroupSteps;
        add_int4(dots, q, block + g % 2 * kInt4GroupBytes + column * 4, g, ahead, first_step);
        if (g % 2) ahead(first_step + kInt4GroupSteps);
        const uint16_t* stored = reinterpret_cast<const uint16_t*>(block + 2 * kInt4GroupBytes);
#pragma GCC unroll 32
        for (int v = 0; v < NV; ++v) weight_scales[v] = load(stored + g % 2 * kPanelRows + column + v * kLanes);
      }
#pragma GCC unroll 32
      for (int r = 0; r < MR; ++r) {
        const Vec scale = splat(scales[r][g]);
#pragma GCC unroll 32
        for (int v = 0; v < NV; ++v) {
          const Vec dot = __builtin_convertvector(dots[r][v], Vec);
          if constexpr (kWeights == DType::kInt4) tile.acc[r][v] = fma(dot * scale, weight_scales[v], tile.acc[r][v]);
          else tile.acc[r][v] = fma(dot, scale, tile.acc[r][v]);
        }
      }
    }
    if (kWeights == DType::kInt8 && end_group * kQuantGroup == x.k) {
      const float* row_scales = reinterpret_cast<const float*>(panel + x.k * kPanelRows) + column;
#pragma GCC unroll 32
      for (int r = 0; r < MR; ++r)
#pragma GCC unroll 32
        for (int v = 0; v < NV; ++v) tile.acc[r][v] *= load(row_scales + v * kLanes);
    }
    tile.store_sums(sums, kPanelRows);
  }

 private:
  // Products of a step of four k, in whatever the instruction set offers. w: this group's first line of the tile.
  template <class A>
  static inline void add_int8(VecI (&dots)[MR][NV], const Integers* const (&q)[MR], const uint8_t* w, int64_t g,
                              const A& ahead, int64_t first_step) {
#pragma GCC unroll 8
    for (int j = 0; j < kInt8GroupSteps; ++j, w += kPanelRows * 4) {
      ahead(first_step + j);
      add_step(dots, q, g * kQuantGroup + 4 * j, [&](int v) { return load_as<VecU>(w + v * kLanes * 4); });
    }
  }

  template <class A>
  static inline void add_int4(VecI (&dots)[MR][NV], const Integers* const (&q)[MR], const uint8_t* w, int64_t g,
                              const A& ahead, int64_t first_step) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
    // The 16 sums of two products that a lane's half collects from a group are at most 15 * 127 * 16 = 30,480.
    VecS halves[MR][NV];
#pragma GCC unroll 32
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) halves[r][v] = VecS{};
#endif
#pragma GCC unroll 8
    for (int j = 0; j < kInt4GroupSteps; ++j, w += kPanelRows * 4) {
      ahead(first_step + j);
      // One half after the other, so that sums and weights fit into the registers.
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const auto weights = [&](int v) { return load_as<VecU>(w + v * kLanes * 4) >> 4 * half & 0x0f0f0f0fu; };
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
        add_step(halves, q, g * kQuantGroup + 8 * j + 4 * half, weights);
#else
        add_step(dots, q, g * kQuantGroup + 8 * j + 4 * half, weights);
#endif
      }
    }
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
    const VecS ones = VecS{} + static_cast<int16_t>(1);
#pragma GCC unroll 32
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) dots[r][v] += madd(halves[r][v], ones);
#endif
  }

  // Four k from `at` on; weights(v): their bytes.
  template <class Weights>
  static inline void add_step(VecI (&dots)[MR][NV], const Integers* const (&q)[MR], int64_t at,
                              const Weights& weights) {
#if defined(__AVX512VNNI__)
    VecU w[NV];
#pragma GCC unroll 32
    for (int v = 0; v < NV; ++v) keep_in_register(w[v] = weights(v));
#pragma GCC unroll 32
    for (int r = 0; r < MR; ++r) {
      const VecU x = splat_at(q[r] + at);
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) dots[r][v] = dot4(dots[r][v], w[v], x);
    }
#else
    // Bytes 0 and 2 of the weights, then 1 and 3, as 16-bit numbers; the activations stand in that order. Rows or
    // weights are kept in registers, what there is less of. Sums are kept one after the other: GCC would rather compute
    // all products first, and has no registers for them.
    if constexpr (MR <= 2) {
      VecS x_even[MR], x_odd[MR];
#pragma GCC unroll 32
      for (int r = 0; r < MR; ++r) {
        keep_in_register(x_even[r] = reinterpret_cast<VecS>(splat_at(q[r] + at)));
        keep_in_register(x_odd[r] = reinterpret_cast<VecS>(splat_at(q[r] + at + 2)));
      }
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) {
        const VecU w = weights(v);
        const VecS even = reinterpret_cast<VecS>(w & 0x00ff00ffu);
        const VecS odd = reinterpret_cast<VecS>(reinterpret_cast<VecUS>(w) >> 8);
#pragma GCC unroll 32
        for (int r = 0; r < MR; ++r) {
          keep_in_register(dots[r][v] += madd(even, x_even[r]));
          keep_in_register(dots[r][v] += madd(odd, x_odd[r]));
        }
      }
      return;
    }
    VecS even[NV], odd[NV];
#pragma GCC unroll 32
    for (int v = 0; v < NV; ++v) {
      const VecU w = weights(v);
      keep_in_register(even[v] = reinterpret_cast<VecS>(w & 0x00ff00ffu));
      keep_in_register(odd[v] = reinterpret_cast<VecS>(reinterpret_cast<VecUS>(w) >> 8));
    }
#pragma GCC unroll 32
    for (int r = 0; r < MR; ++r) {
      const VecS x_even = reinterpret_cast<VecS>(splat_at(q[r] + at)),
                 x_odd = reinterpret_cast<VecS>(splat_at(q[r] + at + 2));
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) {
        keep_in_register(dots[r][v] += madd(even[v], x_even));
        keep_in_register(dots[r][v] += madd(odd[v], x_odd));
      }
    }
#endif
  }

#if defined(__AVX2__) && !defined(__AVX512VNNI__)
  template <class Weights>
  static inline void add_step(VecS (&halves)[MR][NV], const Integers* const (&q)[MR], int64_t at,
                              const Weights& weights) {
    if constexpr (MR <= 2) {
      VecU x[MR];
#pragma GCC unroll 32
      for (int r = 0; r < MR; ++r) keep_in_register(x[r] = splat_at(q[r] + at));
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) {
        const VecU w = weights(v);
#pragma GCC unroll 32
        for (int r = 0; r < MR; ++r) keep_in_register(halves[r][v] += dot2(w, x[r]));
      }
      return;
    }
    VecU w[NV];
#pragma GCC unroll 32
    for (int v = 0; v < NV; ++v) keep_in_register(w[v] = weights(v));
#pragma GCC unroll 32
    for (int r = 0; r < MR; ++r) {
      const VecU x = splat_at(q[r] + at);
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) keep_in_register(halves[r][v] += dot2(w[v], x));
    }
  }
#endif
};

}  // namespace simplear::SIMPLEAR_ISA
