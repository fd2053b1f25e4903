// How often each kind of draft turned out right, given that all drafts before it did.
//
// A kind is whatever tells drafts apart before they are verified: where they come from, how sure their source is. Old
// observations fade, so an estimate follows what is being drawn.
#pragma once

#include <array>
#include <cstdint>

namespace simplear {

class Acceptance {
 public:
  static constexpr int kNumKinds = 64;

  void observe(uint8_t kind, bool is_right) {
    if (seen_[kind] >= kMemory) {
      seen_[kind] /= 2;
      right_[kind] /= 2;
    }
    seen_[kind] += 1;
    right_[kind] += is_right;
  }

  // Before anything was seen: one half.
  double of(uint8_t kind) const { return (right_[kind] + 1) / (seen_[kind] + 2); }

 private:
  static constexpr double kMemory = 512;
  std::array<double, kNumKinds> right_{}, seen_{};
};

}  // namespace simplear
