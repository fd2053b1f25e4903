// One block of rows times one panel, with AMX (product.h has the rest).
//
// bfloat16 takes it for any number of rows, so that all of them are added in the same order (contract C2): even and odd
// k apart over 32 of them, then both to the sum. Integers are exact whatever adds them, so int8 and int4 take it where
// it is faster; groups are scaled and added as in quantized_tile.h, to the bit.
#pragma once

#if defined(__AMX_TILE__)
#include "cpu/amx.h"
#include "cpu/gemm_tile.h"
#include "cpu/operand.h"

namespace simplear::SIMPLEAR_ISA {

constexpr int64_t kFirstAmxRows = 12;  // from which on int8 and int4 take it
constexpr int64_t kSection = 64;       // k of a panel that all tiles of rows use while it is close

// Rows [first, first + num_rows) times a panel of bfloat16, as product_block.
inline void amx_bf16(const Operand& x, int64_t first, int64_t num_rows, const char* panel, int64_t, int64_t,
                     BlockSums& sums) {
  // Tiles of equally many rows; where that is one too many, the last of them begins a little earlier.
  const int64_t tiles = (num_rows + kTileRows - 1) / kTileRows, most = (num_rows + tiles - 1) / tiles;
  const int64_t last = num_rows - most;
  const auto row_of = [&](int64_t tile) { return tile * most < last ? tile * most : last; };
  const auto rows_at = [&](int64_t row) { return TileOfRows{x.row<char>(first + row), x.row_bytes}; };
  const int left = static_cast<int>((x.k % kTileDepth + 1) / 2);
  shape_tiles({static_cast<int>(most), kTileDepth / 2, left});
  int64_t tile = 0;
  for (; left == 0 && tile + 2 <= tiles; tile += 2) {
    const int64_t a = row_of(tile), b = row_of(tile + 1);
    for (int column = 0; column < kPanelRows; column += 2 * kTileColumns) {
      clear_sums();
      add_products(rows_at(a), rows_at(b), panel + column * 4, x.k);
      store_sums(&sums[a][column], &sums[b][column]);
    }
  }
  for (; tile < tiles; ++tile) {
    clear_sums();
    add_products(rows_at(row_of(tile)), panel, x.k);
    store_sums(sums[row_of(tile)]);
  }
}

// A tile of rows of integers times groups of a panel of int8 or int4.
template <DType kWeights>
struct IntegerTile {
  static constexpr int kGroupLines = kQuantGroup / 4;
  static constexpr int64_t kGroupBytes = kQuantGroup * kPanelRows;
  static constexpr int64_t kStoredBytes = kWeights == DType::kInt8 ? kGroupBytes : kInt4BlockBytes / 2;  // of a group
  using Dots = int32_t[kTileRows][kPanelRows];

  const Operand& x;
  int64_t row, count;
  const uint8_t* panel;

  // Groups [begin, end) of bytes at `weights`, added to the sums.
  void add(const TileOfRows& rows, const uint8_t* weights, int64_t begin, int64_t end,
           float (*sums)[kPanelRows]) const {
    alignas(64) Dots dots[2];
    for (int64_t g = begin; g < end; ++g) {
      const uint8_t* group = weights + (g - begin) * kGroupBytes;
      multiply_group({rows.data + (g - begin) * kQuantGroup, rows.row_bytes}, group, dots[g % 2][0], [&](int part) {
        ask_ahead<(kStoredBytes / 4 + 63) / 64>(reinterpret_cast<const char*>(panel) +
                                                (4 * g + part) * kStoredBytes / 4);
        if (g > begin) scale(g - 1, dots[(g - 1) % 2], count * part / 4, count * (part + 1) / 4, sums);
      });
    }
    scale(end - 1, dots[(end - 1) % 2], 0, count, sums);
  }

  // Rows [first, last) of a group.
  void scale(int64_t g, const Dots& dots, int64_t first, int64_t last, float (*sums)[kPanelRows]) const {
    constexpr int kVecs = kPanelRows / kLanes;
    Vec weight_scales[kVecs];
    if constexpr (kWeights == DType::kInt4) {
      const uint8_t* block = panel + g / 2 * kInt4BlockBytes + 2 * kInt4GroupBytes;
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v)
        weight_scales[v] = load(reinterpret_cast<const uint16_t*>(block) + g % 2 * kPanelRows + v * kLanes);
    }
    for (int64_t r = first; r < last; ++r) {
      const Vec scale = splat(x.scales(row + r)[g]);
      const VecI offset = splat(x.offsets(row + r)[g]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        const Vec dot = __builtin_convertvector(load_as<VecI>(&dots[r][v * kLanes]) + offset, Vec);
        const Vec sum = load(&sums[r][v * kLanes]);
        if constexpr (kWeights == DType::kInt4) store(&sums[r][v * kLanes], fma(dot * scale, weight_scales[v], sum));
        else store(&sums[r][v * kLanes], fma(dot, scale, sum));
      }
    }
  }
};

// The nibbles of groups [begin, end) of a panel as bytes.
inline void unpack_groups(const uint8_t* panel, int64_t begin, int64_t end, uint8_t* to) {
  for (int64_t g = begin; g < end; ++g) {
    const uint8_t* from = panel + g / 2 * kInt4BlockBytes + g % 2 * kInt4GroupBytes;
    for (int line = 0; line < kQuantGroup / 8; ++line, from += kPanelLine, to += 2 * kPanelLine)
#pragma GCC unroll 4
      for (int64_t v = 0; v < kPanelLine; v += 64) {
        const VecU bytes = load_as<VecU>(from + v);
        store(reinterpret_cast<uint32_t*>(to + v), bytes & 0x0f0f0f0fu);
        store(reinterpret_cast<uint32_t*>(to + kPanelLine + v), bytes >> 4 & 0x0f0f0f0fu);
      }
  }
}

// As above, for a panel of int8 or int4.
template <DType kWeights>
inline void amx_integers(const Operand& x, int64_t first, int64_t num_rows, const char* panel, int64_t, int64_t,
                         BlockSums& sums) {
  const int64_t tiles = (num_rows + kTileRows - 1) / kTileRows, most = (num_rows + tiles - 1) / tiles;
  shape_tiles({static_cast<int>(most), kQuantGroup / 4, 0});
  const uint8_t* weights = reinterpret_cast<const uint8_t*>(panel);
  alignas(64) uint8_t unpacked[kWeights == DType::kInt4 ? kSection * kPanelRows : 1];
  alignas(64) char copied[kTileRows][kSection];
  std::memset(sums, 0, num_rows * sizeof(sums[0]));
  for (int64_t begin = 0; begin < x.k; begin += kSection) {
    const int64_t end = begin + kSection < x.k ? begin + kSection : x.k;
    const uint8_t* bytes = weights + begin * kPanelRows;
    if constexpr (kWeights == DType::kInt4) {
      unpack_groups(weights, begin / kQuantGroup, end / kQuantGroup, unpacked);
      bytes = unpacked;
    }
    for (int64_t row = 0; row < num_rows; row += most) {
      TileOfRows rows{x.row<char>(first + row) + begin, x.row_bytes};
      const int64_t count = row + most < num_rows ? most : num_rows - row;
      if (count < most) {
        // Behind the last row there is nothing that may be read.
        for (int64_t r = 0; r < count; ++r) std::memcpy(copied[r], rows.data + r * rows.row_bytes, end - begin);
        rows = {copied[0], kSection};
      }
      const IntegerTile<kWeights> tile{x, first + row, count, weights};
      tile.add(rows, bytes, begin / kQuantGroup, end / kQuantGroup, &sums[row]);
    }
  }
  if constexpr (kWeights == DType::kInt8) {
    const float* row_scales = reinterpret_cast<const float*>(weights + x.k * kPanelRows);
    for (int64_t r = 0; r < num_rows; ++r)
      for (int v = 0; v < kPanelRows; v += kLanes) store(&sums[r][v], load(&sums[r][v]) * load(row_scales + v));
  }
}

}  // namespace simplear::SIMPLEAR_ISA

#endif
