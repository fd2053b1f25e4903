// Nearness of codes of a finite scalar quantizer: a code is a point of a lattice, its digits the coordinates.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <span>

namespace simplear {

// Whether two codes are at most one step of one coordinate apart. levels: digits per coordinate, the least significant
// first; empty: only equal codes are near.
inline bool are_neighbours(int32_t code, int32_t other, std::span<const int32_t> levels) {
  if (code == other) return true;
  int32_t steps = 0;
  for (const int32_t num_digits : levels) {
    steps += std::abs(code % num_digits - other % num_digits);
    code /= num_digits;
    other /= num_digits;
  }
  return steps == 1 && code == other;
}

}  // namespace simplear
