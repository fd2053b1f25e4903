// The order in which packed weights lie in memory, the same for every instruction set.
//
// A panel holds 16 output rows. float32: [ceil(N/16)][K][16]. bfloat16: [ceil(N/16)][K/2][16][2], two neighbours in k
// side by side because vdpbf16ps consumes them as a pair; K is rounded up to even with zeros. Rows past N are zero.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace simplear {

constexpr int kPanelRows = 16;

constexpr int64_t num_panels(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }
constexpr int64_t padded_k(int64_t k, DType dtype) { return dtype == DType::kBFloat16 ? (k + 1) / 2 * 2 : k; }
// Elements of one panel.
constexpr int64_t panel_size(int64_t k, DType dtype) { return padded_k(k, dtype) * kPanelRows; }

}  // namespace simplear
