// The register tile of every matrix product: MR rows of x times NP panels of packed weights.
//
//   acc[r][16 p + j] += sum_k x[r][k] * w[16 p + j][k]
//
// Each output has one accumulator that walks k upwards, alone in its lane. So the order of additions depends on nothing
// but k: a row's result is the same bits for every row count, thread count and tile shape (contract C2).
// Panels as in panels.h. float32 weights take float32 rows, bfloat16 weights take bfloat16 rows (k in pairs).
#pragma once

#include "cpu/panels.h"
#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {

constexpr int kVecsPerPanel = kPanelRows / kLanes;
constexpr int kGroupPanels = 4, kGroupColumns = kGroupPanels * kPanelRows;  // what is dealt out to threads

#if defined(__AVX512F__)
constexpr int kMaxTileRows = 6, kMaxTilePanels = 4;  // 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int kMaxTileRows = 4, kMaxTilePanels = 1;  // 8 of 16 (two registers a panel), bf16 needs temporaries
#else
constexpr int kMaxTileRows = 2, kMaxTilePanels = 1;  // 8 of 16 (four registers a panel)
#endif

template <int MR, int NP>
struct Tile {
  Vec acc[MR][NP * kVecsPerPanel];

  inline void clear() {
#pragma GCC unroll 32
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 32
      for (int v = 0; v < NP * kVecsPerPanel; ++v) acc[r][v] = Vec{};
  }

  // x[r]: row r, k elements; w: first panel at this k; panel_stride: elements from one panel to the next.
  inline void accumulate(const float* const (&x)[MR], const float* w, int64_t panel_stride, int64_t k) {
    for (int64_t i = 0; i < k; ++i) {
      Vec weights[NP * kVecsPerPanel];
#pragma GCC unroll 32
      for (int v = 0; v < NP * kVecsPerPanel; ++v)
        weights[v] = load(w + v / kVecsPerPanel * panel_stride + i * kPanelRows + v % kVecsPerPanel * kLanes);
#pragma GCC unroll 32
      for (int r = 0; r < MR; ++r) {
        const Vec xr = splat(x[r][i]);
#pragma GCC unroll 32
        for (int v = 0; v < NP * kVecsPerPanel; ++v) acc[r][v] = fma(xr, weights[v], acc[r][v]);
      }
    }
  }

  // As above for bfloat16; k is even.
  inline void accumulate(const uint16_t* const (&x)[MR], const uint16_t* w, int64_t panel_stride, int64_t k) {
    for (int64_t i = 0; i < k; i += 2) {
      VecU pairs[NP * kVecsPerPanel];
#pragma GCC unroll 32
      for (int v = 0; v < NP * kVecsPerPanel; ++v)
        pairs[v] =
            load_as<VecU>(w + v / kVecsPerPanel * panel_stride + i * kPanelRows + v % kVecsPerPanel * kLanes * 2);
#pragma GCC unroll 32
      for (int r = 0; r < MR; ++r) {
        uint32_t pair;
        std::memcpy(&pair, x[r] + i, 4);
#if defined(__AVX512BF16__)
        const VecU xr = splat(pair);
#pragma GCC unroll 32
        for (int v = 0; v < NP * kVecsPerPanel; ++v)
          acc[r][v] = _mm512_dpbf16_ps(acc[r][v], reinterpret_cast<__m512bh>(xr), reinterpret_cast<__m512bh>(pairs[v]));
#else
        const Vec even = reinterpret_cast<Vec>(splat(pair << 16));
        const Vec odd = reinterpret_cast<Vec>(splat(pair & 0xffff0000u));
#pragma GCC unroll 32
        for (int v = 0; v < NP * kVecsPerPanel; ++v) {
          acc[r][v] = fma(even, reinterpret_cast<Vec>(pairs[v] << 16), acc[r][v]);
          acc[r][v] = fma(odd, reinterpret_cast<Vec>(pairs[v] & 0xffff0000u), acc[r][v]);
        }
#endif
      }
    }
  }
};

// Calls body.template operator()<MR, NP>(row, panel) for tiles that cover rows x panels, rows innermost so that a group
// of panels stays in cache while all rows pass.
template <int MR, int NP, class Body>
inline void for_each_tile_rows(int64_t row, int64_t rows, int64_t panel, const Body& body) {
  for (; row + MR <= rows; row += MR) body.template operator()<MR, NP>(row, panel);
  if constexpr (MR > 1) for_each_tile_rows<(MR > 4 ? 4 : MR / 2), NP>(row, rows, panel, body);
}
template <int NP = kMaxTilePanels, class Body>
inline void for_each_tile(int64_t rows, int64_t panel, int64_t panel_end, const Body& body) {
  for (; panel + NP <= panel_end; panel += NP) for_each_tile_rows<kMaxTileRows, NP>(0, rows, panel, body);
  if constexpr (NP > 1) for_each_tile<NP / 2>(rows, panel, panel_end, body);
}

}  // namespace simplear::SIMPLEAR_ISA
