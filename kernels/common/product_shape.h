// How a product with weights is cut into blocks. It changes how long a product takes and never what comes out.
#pragma once

#include <algorithm>
#include <cstdint>

namespace simplear {

struct ProductBlocks {
  int32_t groups_per_block, num_blocks;
};

// num_groups: pieces of weights that a block can compute. blocks_per_multiprocessor: as many as find room at once.
// The blocks read at one speed, so what counts is the largest load of a multiprocessor; of equal ones, more blocks hide
// more latency.
inline ProductBlocks divide_groups(int32_t num_groups, int32_t num_multiprocessors, int32_t blocks_per_multiprocessor) {
  ProductBlocks best{num_groups, 1};
  int64_t best_load = INT64_MAX;
  for (int32_t resident = 1; resident <= std::max(blocks_per_multiprocessor, 1); ++resident) {
    const int64_t slots = int64_t{num_multiprocessors} * resident;
    const int32_t per_block = static_cast<int32_t>((num_groups + slots - 1) / slots);
    const int32_t blocks = (num_groups + per_block - 1) / per_block;
    const int64_t load = int64_t{per_block} * ((blocks + num_multiprocessors - 1) / num_multiprocessors);
    if (load <= best_load) {
      best = {per_block, blocks};
      best_load = load;
    }
  }
  return best;
}

// How many groups of 8 rows a block computes at once: the least of 1, 2, 4 that covers `num_rows`, or the largest whose
// shared memory, bytes[0..2], is there. 0 when not even one group has room.
inline int32_t row_groups(int64_t num_rows, int64_t max_bytes, const int64_t (&bytes)[3]) {
  int32_t chosen = 0;
  for (int i = 0; i < 3 && bytes[i] <= max_bytes; ++i) {
    chosen = 1 << i;
    if (num_rows <= 8 * chosen) break;
  }
  return chosen;
}

}  // namespace simplear
