// The order in which packed weights lie in memory, the same for every instruction set.
//
// A panel holds 64 output rows over all of k, row by row within a step of k. So a thread that walks through k for all
// 64 rows reads one stream from its first byte to its last, and so on into the next panel: several streams side by side
// (panels of 16 rows) kept hardware from prefetching and cost int4 a third of its speed. Rows past N are zero.
//
//   float32   [K][64]
//   bfloat16  [K/2][64][2]       two neighbours in k side by side, because vdpbf16ps takes them as a pair
//   int8      [K'/4][64][4]      four neighbours in k, because vpdpbusd takes them so; then one float32 scale a row.
//                                A byte holds q + 128, q in -127..127; the weight is q * scale. K' = K up to 32
//   int4      [K'/64] blocks     of two groups of 32 and the bfloat16 scales of both, [2][64]. A group is [4][64][4]
//                                bytes; the low nibble of byte [j][row][i] holds k = 8 j + i, the high one k = 8 j + 4
//                                + i. A nibble holds q + 8, q in -8..7; the weight is q * scale of its row and group.
//                                K' = K up to 64
//
// Quantised weights are multiplied with activations in int8, one scale for 32 neighbours of a row (operand.h).
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace simplear {

constexpr int kPanelRows = 64;
constexpr int kTurnRows = 32;    // of each part in turn, where two matrices are packed by turns
constexpr int kQuantGroup = 32;  // activations, and weights of int4, share a scale over that many neighbours in k
constexpr int kInt4Block = 2 * kQuantGroup;
constexpr int kInt4GroupBytes = kQuantGroup / 2 * kPanelRows;
constexpr int kInt4BlockBytes = 2 * kInt4GroupBytes + 2 * kPanelRows * 2;
constexpr int kInt8Zero = 128, kInt4Zero = 8;

constexpr bool is_quantized(DType dtype) { return dtype == DType::kInt8 || dtype == DType::kInt4; }

constexpr int64_t num_panels(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

constexpr int64_t padded_k(int64_t k, DType dtype) {
  const int64_t unit = dtype == DType::kBFloat16 ? 2
                       : dtype == DType::kInt8   ? kQuantGroup
                       : dtype == DType::kInt4   ? kInt4Block
                                                 : 1;
  return (k + unit - 1) / unit * unit;
}

// Elements of one panel; of quantised ones, bytes.
constexpr int64_t panel_size(int64_t k, DType dtype) {
  const int64_t padded = padded_k(k, dtype);
  if (dtype == DType::kInt8) return padded * kPanelRows + kPanelRows * 4;
  if (dtype == DType::kInt4) return padded / kInt4Block * kInt4BlockBytes;
  return padded * kPanelRows;
}

}  // namespace simplear
