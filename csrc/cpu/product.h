// Products of prepared rows with packed weights of any type, one panel of 64 columns after the other.
//
// Finished sums of a block of rows and a panel are handed to a function, which may add a bias, gate, sample or store:
// nothing else about an op with weights differs. So the loops themselves are compiled once (ops/product.cc).
#pragma once

#include "cpu/operand.h"
#include "cpu/panels.h"

namespace simplear::SIMPLEAR_ISA {

// sums[r]: of row first_row + r and the panel's 64 columns, of which those that exist are set.
using FinishBlock = void (*)(const void* context, int64_t first_row, int64_t num_rows, int64_t panel,
                             const float (*sums)[kPanelRows]);

// finish(context, ...) for all rows and the panels [begin, end) of weights [columns, K].
void multiply_panels(const Operand& x, int64_t num_rows, const AnyPtr& weights, int64_t columns, int64_t begin,
                     int64_t end, FinishBlock finish, const void* context);

// As above, finish(row, panel, sums) for each row; sums: float[64].
template <class Finish>
inline void product(const Operand& x, int64_t num_rows, const AnyPtr& weights, int64_t columns, int64_t begin,
                    int64_t end, const Finish& finish) {
  multiply_panels(
      x, num_rows, weights, columns, begin, end,
      [](const void* context, int64_t first_row, int64_t num_rows, int64_t panel, const float (*sums)[kPanelRows]) {
        for (int64_t r = 0; r < num_rows; ++r) (*static_cast<const Finish*>(context))(first_row + r, panel, sums[r]);
      },
      &finish);
}

// How many panels are worth waking another thread for: a vector multiply-add does the work of some ten simple elements,
// and a few rows cost what it takes to fetch the weights.
inline int64_t panel_grain(int64_t num_rows, int64_t k) {
  constexpr int64_t kFetchedFor = 6;  // rows
  return grain_of((num_rows < kFetchedFor ? kFetchedFor : num_rows) * k * kPanelRows / 10);
}

}  // namespace simplear::SIMPLEAR_ISA
