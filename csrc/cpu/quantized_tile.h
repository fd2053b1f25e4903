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
constexpr int kQuantTileRows = 3, kQuantTileVecs = 4;  // 12 integer and 12 float sums of 32 registers
#elif defined(__AVX2__)
constexpr int kQuantTileRows = 2, kQuantTileVecs = 2;
#else
constexpr int kQuantTileRows = 1, kQuantTileVecs = 4;
#endif

// Lane by lane, sum + the products of the four unsigned bytes of w with the four signed ones of x.
inline VecI dot4(VecI sum, VecU w, VecU x) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<VecI>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(w), reinterpret_cast<__m512i>(x)));
#elif defined(__SSE2__)
  // Products of 16-bit numbers, because sums of two products of bytes do not fit into 16 bits.
  typedef int16_t Halves __attribute__((vector_size(kLanes * 4)));
  const VecU w_even = w & 0x00ff00ffu, w_odd = w >> 8 & 0x00ff00ffu;
  const Halves x_even = reinterpret_cast<Halves>(x << 8) >> 8, x_odd = reinterpret_cast<Halves>(x) >> 8;
#if defined(__AVX512F__)
  const auto madd = [](VecU a, Halves b) {
    return reinterpret_cast<VecI>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
  };
#elif defined(__AVX2__)
  const auto madd = [](VecU a, Halves b) {
    return reinterpret_cast<VecI>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
  };
#else
  const auto madd = [](VecU a, Halves b) {
    return reinterpret_cast<VecI>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
  };
#endif
  return sum + madd(w_even, x_even) + madd(w_odd, x_odd);
#else
  for (int shift = 0; shift < 32; shift += 8)
    sum += reinterpret_cast<VecI>(w >> shift & 255u) * (reinterpret_cast<VecI>(x << (24 - shift)) >> 24);
  return sum;
#endif
}

template <int MR, int NV, DType kWeights>
struct QuantizedTile {
  // Groups [first_group, end_group) of rows first_row .. first_row + MR - 1, added to `sums` (kPanelRows floats from
  // one row to the next) or, with the first group, put there. panel: its first byte; column: the tile's first in it.
  template <class A>
  static inline void run(const Operand& x, int64_t first_row, const uint8_t* panel, int64_t column, float* sums,
                         int64_t first_group, int64_t end_group, const A& ahead) {
    const int8_t* q[MR];
    const float* scales[MR];
    const int32_t* offsets[MR];
    for (int r = 0; r < MR; ++r) {
      q[r] = x.integers(first_row + r);
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
                 (g - first_group) * kQuantGroup * kPanelRows);
      } else {
        const uint8_t* block = panel + g / 2 * kInt4BlockBytes;
        add_int4(dots, q, block + g % 2 * kInt4GroupBytes + column * 4, g, ahead,
                 (g / 2 - first_group / 2) * kInt4BlockBytes + g % 2 * kInt4GroupBytes);
        if (g % 2) ahead((g / 2 - first_group / 2) * kInt4BlockBytes + 2 * kInt4GroupBytes);
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
  static inline uint32_t four(const int8_t* q) {
    uint32_t bytes;
    std::memcpy(&bytes, q, 4);
    return bytes;
  }

  // w: this group's first line of the tile.
  template <class A>
  static inline void add_int8(VecI (&dots)[MR][NV], const int8_t* const (&q)[MR], const uint8_t* w, int64_t g,
                              const A& ahead, int64_t bytes) {
#pragma GCC unroll 8
    for (int j = 0; j < kQuantGroup / 4; ++j, w += kPanelRows * 4) {
      ahead(bytes + j * kPanelRows * 4);
      VecU weights[NV];
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) keep_in_register(weights[v] = load_as<VecU>(w + v * kLanes * 4));
#pragma GCC unroll 32
      for (int r = 0; r < MR; ++r) {
        const VecU xr = splat(four(q[r] + g * kQuantGroup + 4 * j));
#pragma GCC unroll 32
        for (int v = 0; v < NV; ++v) dots[r][v] = dot4(dots[r][v], weights[v], xr);
      }
    }
  }

  template <class A>
  static inline void add_int4(VecI (&dots)[MR][NV], const int8_t* const (&q)[MR], const uint8_t* w, int64_t g,
                              const A& ahead, int64_t bytes) {
#pragma GCC unroll 8
    for (int j = 0; j < kQuantGroup / 8; ++j, w += kPanelRows * 4) {
      ahead(bytes + j * kPanelRows * 4);
      // One half after the other, so that sums and weights fit into the registers.
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        VecU weights[NV];
#pragma GCC unroll 32
        for (int v = 0; v < NV; ++v)
          keep_in_register(weights[v] = load_as<VecU>(w + v * kLanes * 4) >> 4 * half & 0x0f0f0f0fu);
#pragma GCC unroll 32
        for (int r = 0; r < MR; ++r) {
          const VecU xr = splat(four(q[r] + g * kQuantGroup + 8 * j + 4 * half));
#pragma GCC unroll 32
          for (int v = 0; v < NV; ++v) dots[r][v] = dot4(dots[r][v], weights[v], xr);
        }
      }
    }
  }
};

}  // namespace simplear::SIMPLEAR_ISA
