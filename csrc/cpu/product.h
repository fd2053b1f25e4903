// Products of prepared rows with packed weights of any type, one panel of 64 columns after the other.
//
// A block of rows passes over a panel together, so that weights are read from memory once. Up to eight rows take turns
// over 2 KB of weights at a time: what the first tile has read is in the first-level cache for the next, and the stream
// from memory hardly pauses. (int8, eight rows: 15.3 ms a step of 0.5B instead of 17.2.) More rows than that compute
// for longer than they wait, and a whole k at a time computes faster. Sums that wait in memory change no bit. No line
// is asked for ahead of time: a single stream is what hardware prefetching is made for, and prefetch instructions,
// near, far or for the next panel, only got in its way.
//
// Finished sums of a row and a panel are handed to a function, which may add a bias, gate, sample or store: nothing
// else about an op with weights differs.
#pragma once

#include "cpu/gemm_tile.h"
#include "cpu/operand.h"
#include "cpu/quantized_tile.h"

namespace simplear::SIMPLEAR_ISA {

constexpr int kBlockRows = 24;     // whose sums of a panel wait in the first-level cache
constexpr int kTurnTakers = 8;     // rows that take turns over chunks of a panel
constexpr int kChunkBytes = 2048;  // of a panel

// Columns past the end of the matrix are undefined.
using BlockSums = float[kBlockRows][kPanelRows];

// run<MR>: rows [row, row + MR), of which `sums` is the first one's, and k in [begin, end).
template <class T>
struct FloatTiles {
  static constexpr int kMaxRows = kMaxTileRows;
  static constexpr int64_t kChunk = kChunkBytes / (kPanelRows * sizeof(T));

  template <int MR, int NV = kMaxTileVecs>
  static inline void run(const Operand& x, int64_t row, const void* panel, int64_t columns, float* sums, int64_t begin,
                         int64_t end, int64_t column = 0) {
    const T* rows[MR];
    for (int r = 0; r < MR; ++r) rows[r] = x.row<T>(row + r) + begin;
    // Elements of one column in a step of k, in which bfloat16 takes a pair.
    constexpr int64_t kStep = sizeof(T) == 2 ? 2 : 1;
    for (; column + NV * kLanes <= columns; column += NV * kLanes) {
      Tile<MR, NV> tile;
      if (begin == 0) tile.clear();
      else tile.load_sums(sums + column, kPanelRows);
      tile.accumulate(rows, static_cast<const T*>(panel) + begin * kPanelRows + column * kStep, end - begin);
      tile.store_sums(sums + column, kPanelRows);
    }
    if constexpr (NV > 1)
      if (column < columns) run<MR, NV / 2>(x, row, panel, columns, sums, begin, end, column);
  }
};

template <DType kWeights>
struct QuantizedTiles {
  static constexpr int kMaxRows = kQuantTileRows;
  static constexpr int64_t kChunk = kChunkBytes / kPanelRows * (kWeights == DType::kInt4 ? 2 : 1);

  template <int MR, int NV = kQuantTileVecs>
  static inline void run(const Operand& x, int64_t row, const void* panel, int64_t columns, float* sums, int64_t begin,
                         int64_t end, int64_t column = 0) {
    for (; column + NV * kLanes <= columns; column += NV * kLanes)
      QuantizedTile<MR, NV, kWeights>::run(x, row, static_cast<const uint8_t*>(panel), column, sums + column,
                                           kPanelRows, begin / kQuantGroup, end / kQuantGroup);
    if constexpr (NV > 1)
      if (column < columns) run<MR, NV / 2>(x, row, panel, columns, sums, begin, end, column);
  }
};

// Rows [row, num_rows) of a block that begins with `first`.
template <class Tiles, int MR>
inline void product_tiles(const Operand& x, int64_t first, int64_t row, int64_t num_rows, const void* panel,
                          int64_t columns, BlockSums& sums, int64_t begin, int64_t end) {
  for (; row + MR <= num_rows; row += MR)
    Tiles::template run<MR>(x, first + row, panel, columns, sums[row], begin, end);
  if constexpr (MR > 1)
    if (row < num_rows)
      product_tiles<Tiles, (MR > 4 ? 4 : (MR + 1) / 2)>(x, first, row, num_rows, panel, columns, sums, begin, end);
}

template <class Tiles, class Finish>
inline void product_as(const Operand& x, int64_t num_rows, const AnyPtr& weights, int64_t columns, int64_t begin,
                       int64_t end, const Finish& finish) {
  const int64_t panel_bytes = panel_size(x.k, weights.dtype) * static_cast<int64_t>(size_of(weights.dtype));
  alignas(64) BlockSums sums;
  for (int64_t panel = begin; panel < end; ++panel) {
    const char* data = static_cast<const char*>(weights.data) + panel * panel_bytes;
    const int64_t left = columns - panel * kPanelRows, used = whole_vectors(left < kPanelRows ? left : kPanelRows);
    for (int64_t first = 0; first < num_rows; first += kBlockRows) {
      const int64_t rows = num_rows - first < kBlockRows ? num_rows - first : kBlockRows;
      const int64_t chunk = rows > Tiles::kMaxRows && rows <= kTurnTakers ? Tiles::kChunk : x.k;
      for (int64_t k = 0; k < x.k; k += chunk)
        product_tiles<Tiles, Tiles::kMaxRows>(x, first, 0, rows, data, used, sums, k,
                                              k + chunk < x.k ? k + chunk : x.k);
      for (int64_t r = 0; r < rows; ++r) finish(first + r, panel, sums[r]);
    }
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
