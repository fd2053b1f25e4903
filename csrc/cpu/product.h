// Products of prepared rows with packed weights of any type, one panel of 64 columns after the other.
//
// All rows pass over a panel before the next one begins, so that weights are read from memory once and then from the
// second-level cache. Finished sums of a row and a panel are handed to a function, which may add a bias, gate, sample
// or store: nothing else about an op with weights differs.
#pragma once

#include "cpu/gemm_tile.h"
#include "cpu/operand.h"
#include "cpu/quantized_tile.h"

namespace simplear::SIMPLEAR_ISA {

// Sums of MR rows and one panel; columns past the end of the matrix are undefined.
template <int MR>
using PanelSums = float[MR][kPanelRows];

template <class T>
struct FloatTiles {
  static constexpr int kMaxRows = kMaxTileRows;

  template <int MR, int NV = kMaxTileVecs>
  static inline void run(const Operand& x, int64_t row, const void* panel, int64_t columns, PanelSums<MR>& sums,
                         int64_t column = 0) {
    const T* rows[MR];
    for (int r = 0; r < MR; ++r) rows[r] = x.row<T>(row + r);
    // Elements of one column in a step of k, in which bfloat16 takes a pair.
    constexpr int64_t kStep = sizeof(T) == 2 ? 2 : 1;
    for (; column + NV * kLanes <= columns; column += NV * kLanes) {
      Tile<MR, NV> tile;
      tile.clear();
      tile.template accumulate<true>(rows, static_cast<const T*>(panel) + column * kStep, x.k);
#pragma GCC unroll 32
      for (int r = 0; r < MR; ++r)
#pragma GCC unroll 32
        for (int v = 0; v < NV; ++v) store(sums[r] + column + v * kLanes, tile.acc[r][v]);
    }
    if constexpr (NV > 1)
      if (column < columns) run<MR, NV / 2>(x, row, panel, columns, sums, column);
  }
};

template <DType kWeights>
struct QuantizedTiles {
  static constexpr int kMaxRows = kQuantTileRows;

  template <int MR, int NV = quant_tile_vecs(MR)>
  static inline void run(const Operand& x, int64_t row, const void* panel, int64_t columns, PanelSums<MR>& sums,
                         int64_t column = 0) {
    for (; column + NV * kLanes <= columns; column += NV * kLanes)
      QuantizedTile<MR, NV, kWeights>::run(x, row, static_cast<const uint8_t*>(panel), column, sums);
    if constexpr (NV > 1)
      if (column < columns) run<MR, NV / 2>(x, row, panel, columns, sums, column);
  }
};

template <class Tiles, int MR, class Finish>
inline void product_rows(const Operand& x, int64_t row, int64_t num_rows, const void* weights, int64_t panel,
                         int64_t columns, const Finish& finish) {
  for (; row + MR <= num_rows; row += MR) {
    alignas(64) PanelSums<MR> sums;
    Tiles::template run<MR>(x, row, weights, columns, sums);
    for (int r = 0; r < MR; ++r) finish(row + r, panel, sums[r]);
  }
  if constexpr (MR > 1)
    if (row < num_rows) product_rows<Tiles, (MR > 4 ? 4 : MR / 2)>(x, row, num_rows, weights, panel, columns, finish);
}

template <class Tiles, class Finish>
inline void product_as(const Operand& x, int64_t num_rows, const AnyPtr& weights, int64_t columns, int64_t begin,
                       int64_t end, const Finish& finish) {
  const int64_t panel_bytes = panel_size(x.k, weights.dtype) * static_cast<int64_t>(size_of(weights.dtype));
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t left = columns - panel * kPanelRows;
    product_rows<Tiles, Tiles::kMaxRows>(x, 0, num_rows, static_cast<const char*>(weights.data) + panel * panel_bytes,
                                         panel, whole_vectors(left < kPanelRows ? left : kPanelRows), finish);
  }
}

// finish(row, panel, sums) for every row and the panels [begin, end) of weights [columns, K]; sums: float[64], of which
// the columns that exist are set.
template <class Finish>
inline void product(const Operand& x, int64_t num_rows, const AnyPtr& weights, int64_t columns, int64_t begin,
                    int64_t end, const Finish& finish) {
  switch (weights.dtype) {
    case DType::kFloat32: return product_as<FloatTiles<float>>(x, num_rows, weights, columns, begin, end, finish);
    case DType::kBFloat16: return product_as<FloatTiles<uint16_t>>(x, num_rows, weights, columns, begin, end, finish);
    case DType::kInt8:
      return product_as<QuantizedTiles<DType::kInt8>>(x, num_rows, weights, columns, begin, end, finish);
    default: return product_as<QuantizedTiles<DType::kInt4>>(x, num_rows, weights, columns, begin, end, finish);
  }
}

// How many panels are worth waking another thread for: a vector multiply-add does the work of some ten simple elements.
inline int64_t panel_grain(int64_t num_rows, int64_t k) { return grain_of(num_rows * k * kPanelRows / 10); }

}  // namespace simplear::SIMPLEAR_ISA
