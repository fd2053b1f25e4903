// Products of prepared rows with packed weights of any type, in groups of 64 columns.
//
// Rows pass in blocks over one group of panels after the other, so that weights are read from memory once and then from
// the second-level cache. Finished sums of a row and a group are handed to a function, which may add a bias, gate,
// sample or store: nothing else about an op with weights differs.
#pragma once

#include "cpu/gemm_tile.h"
#include "cpu/operand.h"
#include "cpu/quantized_tile.h"

namespace simplear::SIMPLEAR_ISA {

constexpr int64_t num_groups(int64_t columns) { return (columns + kGroupColumns - 1) / kGroupColumns; }

// Sums of MR rows and one group; panels past the end of the matrix leave theirs as they were.
template <int MR>
using GroupSums = float[MR][kGroupColumns];

template <class T>
struct FloatTiles {
  static constexpr int kMaxRows = kMaxTileRows;

  template <int MR, int NP = kMaxTilePanels>
  static inline void run(const Operand& x, int64_t row, const void* weights, int64_t panel, int count,
                         GroupSums<MR>& sums, int first = 0) {
    const int64_t stride = panel_size(x.k, dtype);
    const T* rows[MR];
    for (int r = 0; r < MR; ++r) rows[r] = x.row<T>(row + r);
    for (; first + NP <= count; first += NP) {
      Tile<MR, NP> tile;
      tile.clear();
      tile.accumulate(rows, static_cast<const T*>(weights) + (panel + first) * stride, stride, x.k);
#pragma GCC unroll 32
      for (int r = 0; r < MR; ++r)
#pragma GCC unroll 32
        for (int v = 0; v < NP * kVecsPerPanel; ++v) store(sums[r] + first * kPanelRows + v * kLanes, tile.acc[r][v]);
    }
    if constexpr (NP > 1)
      if (first < count) run<MR, NP / 2>(x, row, weights, panel, count, sums, first);
  }

 private:
  static constexpr DType dtype = sizeof(T) == 2 ? DType::kBFloat16 : DType::kFloat32;
};

template <DType kWeights>
struct QuantizedTiles {
  static constexpr int kMaxRows = kQuantTileRows;

  template <int MR, int NP = quant_tile_panels(MR)>
  static inline void run(const Operand& x, int64_t row, const void* weights, int64_t panel, int count,
                         GroupSums<MR>& sums, int first = 0) {
    const int64_t bytes = panel_size(x.k, kWeights);
    for (; first + NP <= count; first += NP)
      QuantizedTile<MR, NP, kWeights>::run(x, row, static_cast<const uint8_t*>(weights) + (panel + first) * bytes,
                                           bytes, sums, first * kPanelRows);
    if constexpr (NP > 1)
      if (first < count) run<MR, NP / 2>(x, row, weights, panel, count, sums, first);
  }
};

template <class Tiles, int MR, class Finish>
inline void product_rows(const Operand& x, int64_t row, int64_t num_rows, const void* weights, int64_t group, int count,
                         const Finish& finish) {
  for (; row + MR <= num_rows; row += MR) {
    alignas(64) GroupSums<MR> sums;
    Tiles::template run<MR>(x, row, weights, group * kGroupPanels, count, sums);
    for (int r = 0; r < MR; ++r) finish(row + r, group, sums[r]);
  }
  if constexpr (MR > 1)
    if (row < num_rows) product_rows<Tiles, (MR > 4 ? 4 : MR / 2)>(x, row, num_rows, weights, group, count, finish);
}

template <class Tiles, class Finish>
inline void product_as(const Operand& x, int64_t num_rows, const void* weights, int64_t columns, int64_t begin,
                       int64_t end, const Finish& finish) {
  for (int64_t group = begin; group < end; ++group) {
    const int64_t left = num_panels(columns) - group * kGroupPanels;
    product_rows<Tiles, Tiles::kMaxRows>(x, 0, num_rows, weights, group,
                                         static_cast<int>(left < kGroupPanels ? left : kGroupPanels), finish);
  }
}

// finish(row, group, sums) for every row and the column groups [begin, end) of weights [columns, K]; sums: float[64],
// of which the columns that exist are set.
template <class Finish>
inline void product(const Operand& x, int64_t num_rows, const AnyPtr& weights, int64_t columns, int64_t begin,
                    int64_t end, const Finish& finish) {
  switch (weights.dtype) {
    case DType::kFloat32: return product_as<FloatTiles<float>>(x, num_rows, weights.data, columns, begin, end, finish);
    case DType::kBFloat16:
      return product_as<FloatTiles<uint16_t>>(x, num_rows, weights.data, columns, begin, end, finish);
    case DType::kInt8:
      return product_as<QuantizedTiles<DType::kInt8>>(x, num_rows, weights.data, columns, begin, end, finish);
    default: return product_as<QuantizedTiles<DType::kInt4>>(x, num_rows, weights.data, columns, begin, end, finish);
  }
}

// How many column groups are worth waking another thread for: a vector multiply-add does the work of some ten simple
// elements.
inline int64_t group_grain(int64_t num_rows, int64_t k) { return grain_of(num_rows * k * kGroupColumns / 10); }

}  // namespace simplear::SIMPLEAR_ISA
