// The loops of product.h.
//
// A block of rows passes over a panel together, so that weights are read from memory once. Up to a tile of them reads
// one stream from memory, which is what hardware prefetching is made for (decision 0013 has the exceptions). More rows
// than that take turns over a chunk of weights at a time, and each turn asks for its share of a chunk further on:
// memory then works while they compute, at an even pace. Left to itself it works for the first turn only (int8, sixteen
// rows: 28 ms a step of 0.5B instead of 21). Asking in bursts, or into the first-level cache, is worse than not asking.
// Sums that wait in memory change no bit. AMX goes other ways (amx_product.h).
#include "cpu/product.h"

#include <type_traits>

#include "cpu/amx_product.h"
#include "cpu/gemm_tile.h"
#include "cpu/quantized_tile.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

constexpr int64_t kAheadBytes = 32 * 1024;       // from what is multiplied to what is asked for meanwhile
constexpr int64_t kStreamAheadBytes = 8 * 1024;  // likewise, for rows of a single tile

inline int64_t num_steps(int64_t bytes) { return (bytes + 255) / 256; }  // of k that read them

// run<MR>: rows [row, row + MR), of which `sums` is the first one's, and k in [begin, end). Where a tile is narrower
// than a panel, each of its passes asks for a part of what lies ahead.
template <class T>
struct FloatTiles {
  static constexpr int kMaxRows = kMaxTileRows;
  // Some eight sums at least, because an addition takes as long as eight of them.
  static constexpr int vectors(int rows) {
    return kLanes == 16 ? kMaxTileVecs : rows == 1 ? 8 : rows == 2 ? 4 : kMaxTileVecs;
  }
  static constexpr int64_t kTurnLength = 256 / sizeof(T), kStreamLength = 64 / sizeof(T);
  static constexpr bool kAsksInStream = false;

  template <int MR, int NV = vectors(MR), class A>
  static inline void run(const Operand& x, int64_t row, const void* panel, int64_t columns, float* sums, int64_t begin,
                         int64_t end, const A& ahead, int64_t column = 0) {
    if (columns - column < NV * kLanes) {
      if constexpr (NV > 1) run<MR, NV / 2>(x, row, panel, columns, sums, begin, end, ahead, column);
      return;
    }
    const RowType<T>* rows[MR];
    for (int r = 0; r < MR; ++r) rows[r] = x.row<RowType<T>>(row + r) + begin;
    // Elements of one column in a step of k, in which bfloat16 takes a pair.
    constexpr int64_t kStep = sizeof(T) == 2 ? 2 : 1;
    Tile<MR, NV> tile;
    if (begin == 0) tile.clear();
    else tile.load_sums(sums + column, kPanelRows);
    tile.accumulate(rows, static_cast<const T*>(panel) + begin * kPanelRows + column * kStep, end - begin,
                    ahead.template of<kPanelRows / (NV * kLanes)>(column / (NV * kLanes)));
    tile.store_sums(sums + column, kPanelRows);
    if (column + NV * kLanes < columns)
      run<MR, NV>(x, row, panel, columns, sums, begin, end, ahead, column + NV * kLanes);
  }
};

template <DType kWeights>
struct QuantizedTiles {
  static constexpr int kMaxRows = quant_tile_rows(kWeights);
  static constexpr int vectors(int rows) { return quant_tile_vectors(kWeights, rows); }
  static constexpr int64_t kTurnLength = 256, kStreamLength = kWeights == DType::kInt4 ? 128 : 64;
  // Whether a tile as wide as a panel asks for what comes next, too: with little to read and much to unpack, hardware
  // falls behind, but not that of Zen 4.
#if defined(__AMX_TILE__)
  static constexpr bool kAsksInStream = true;
#else
  static constexpr bool kAsksInStream = kWeights == DType::kInt4 && kLanes < 16;
#endif

  template <int MR, int NV = vectors(MR), class A>
  static inline void run(const Operand& x, int64_t row, const void* panel, int64_t columns, float* sums, int64_t begin,
                         int64_t end, const A& ahead, int64_t column = 0) {
    if (columns - column < NV * kLanes) {
      if constexpr (NV > 1) run<MR, NV / 2>(x, row, panel, columns, sums, begin, end, ahead, column);
      return;
    }
    QuantizedTile<MR, NV, kWeights>::run(x, row, static_cast<const uint8_t*>(panel), column, sums + column,
                                         begin / kQuantGroup, end / kQuantGroup,
                                         ahead.template of<kPanelRows / (NV * kLanes)>(column / (NV * kLanes)));
    if (column + NV * kLanes < columns)
      run<MR, NV>(x, row, panel, columns, sums, begin, end, ahead, column + NV * kLanes);
  }
};

// A turn of `rows` <= MR rows.
template <class Tiles, int MR = Tiles::kMaxRows, class A>
inline void take_turn(int64_t rows, const Operand& x, int64_t row, const void* panel, int64_t columns, float* sums,
                      int64_t begin, int64_t end, const A& ahead) {
  if constexpr (MR > 1)
    if (rows < MR) return take_turn<Tiles, MR - 1>(rows, x, row, panel, columns, sums, begin, end, ahead);
  Tiles::template run<MR>(x, row, panel, columns, sums, begin, end, ahead);
}

// One block of rows times one panel.
template <class Tiles>
inline void product_block(const Operand& x, int64_t first, int64_t num_rows, const char* panel, int64_t panel_bytes,
                          int64_t columns, BlockSums& sums) {
  const int64_t turns = (num_rows + Tiles::kMaxRows - 1) / Tiles::kMaxRows;
  if (turns == 1 && Tiles::vectors(static_cast<int>(num_rows)) * kLanes >= kPanelRows) {
    using Asking = std::conditional_t<Tiles::kAsksInStream, Ahead<4>, NothingAhead>;
    return take_turn<Tiles>(num_rows, x, first, panel, columns, sums[0], 0, x.k,
                            Asking{panel + kStreamAheadBytes, num_steps(panel_bytes)});
  }
  // Tiles that are narrower than a panel read every other line of it. They go a short way at a time, so that memory
  // sees one stream after all, and ask for what lies a little further on.
  if (turns == 1) {
    for (int64_t begin = 0; begin < x.k; begin += Tiles::kStreamLength) {
      const int64_t end = begin + Tiles::kStreamLength < x.k ? begin + Tiles::kStreamLength : x.k;
      const Ahead<4> ahead{panel + panel_bytes * begin / x.k + kStreamAheadBytes,
                           num_steps(panel_bytes * (end - begin) / x.k)};
      take_turn<Tiles>(num_rows, x, first, panel, columns, sums[0], begin, end, ahead);
    }
    return;
  }
  // Turns of equal length, or one row less in the last of them: a fixed order of tiles is what branches are predicted
  // by.
  const int64_t most = (num_rows + turns - 1) / turns, num_full = num_rows - turns * (most - 1);
  for (int64_t begin = 0; begin < x.k; begin += Tiles::kTurnLength) {
    const int64_t end = begin + Tiles::kTurnLength < x.k ? begin + Tiles::kTurnLength : x.k;
    // Every turn asks for an equal share of what lies so many bytes ahead.
    const int64_t share = panel_bytes * (end - begin) / x.k / turns;
    const char* next = panel + panel_bytes * begin / x.k + kAheadBytes;
    for (int64_t turn = 0, row = 0; turn < turns; ++turn, next += share) {
      const int64_t rows = turn < num_full ? most : most - 1;
      if (turns < 4)
        take_turn<Tiles>(rows, x, first + row, panel, columns, sums[row], begin, end,
                         Ahead<2>{next, num_steps(2 * share)});
      else
        take_turn<Tiles>(rows, x, first + row, panel, columns, sums[row], begin, end,
                         Ahead<1>{next, num_steps(4 * share)});
      row += rows;
    }
  }
}

// multiply_block: product_block of some tiles, or one of amx_product.h.
template <auto multiply_block>
inline void multiply_panels_by(const Operand& x, int64_t num_rows, const AnyPtr& weights, int64_t columns,
                               int64_t begin, int64_t end, FinishBlock finish, const void* context) {
  const int64_t panel_bytes = panel_size(x.k, weights.dtype) * static_cast<int64_t>(size_of(weights.dtype));
  alignas(64) BlockSums sums;
  for (int64_t panel = begin; panel < end; ++panel) {
    const char* data = static_cast<const char*>(weights.data) + panel * panel_bytes;
    const int64_t left = columns - panel * kPanelRows, used = whole_vectors(left < kPanelRows ? left : kPanelRows);
    for (int64_t first = 0; first < num_rows; first += kBlockRows) {
      const int64_t rows = num_rows - first < kBlockRows ? num_rows - first : kBlockRows;
      multiply_block(x, first, rows, data, panel_bytes, used, sums);
      finish(context, first, rows, panel, sums);
    }
  }
}

}  // namespace

void multiply_panels(const Operand& x, int64_t num_rows, const AnyPtr& weights, int64_t columns, int64_t begin,
                     int64_t end, FinishBlock finish, const void* context) {
  const auto multiply_by = [&]<auto multiply_block>() {
    multiply_panels_by<multiply_block>(x, num_rows, weights, columns, begin, end, finish, context);
  };
#if defined(__AMX_TILE__)
  if (weights.dtype == DType::kBFloat16) return multiply_by.template operator()<amx_bf16>();
  if (num_rows >= kFirstAmxRows && weights.dtype == DType::kInt8)
    return multiply_by.template operator()<amx_integers<DType::kInt8>>();
  if (num_rows >= kFirstAmxRows && weights.dtype == DType::kInt4)
    return multiply_by.template operator()<amx_integers<DType::kInt4>>();
#else
  if (weights.dtype == DType::kBFloat16) return multiply_by.template operator()<product_block<FloatTiles<uint16_t>>>();
#endif
  if (weights.dtype == DType::kFloat32) return multiply_by.template operator()<product_block<FloatTiles<float>>>();
  if (weights.dtype == DType::kInt8)
    return multiply_by.template operator()<product_block<QuantizedTiles<DType::kInt8>>>();
  multiply_by.template operator()<product_block<QuantizedTiles<DType::kInt4>>>();
}

}  // namespace simplear::SIMPLEAR_ISA
