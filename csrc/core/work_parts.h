// Items of an op, dealt out to threads so that all of them end together.
//
// Each thread has a contiguous part, which it takes from the front in pieces that get smaller; one that has finished
// takes half of what another still has, from the end. So threads of equal speed do what is theirs, as one stream, and a
// thread on a slow core (efficiency cores, a busy neighbour) holds nobody up. Who computes an item depends on timing,
// so its result must not depend on who does (contract C2).
//
// The idea of Blumofe and Leiserson 1999, without a deque: items are numbers, so a part is two of them in one word.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "core/check.h"

namespace simplear {

class WorkParts {
 public:
  explicit WorkParts(int num_threads) : parts_(num_threads) {}

  // Before threads ask.
  void deal(int64_t items) {
    check(items < int64_t{1} << 32, ErrorKind::kInternal, "threads: ", items, " items are too many to share");
    const auto count = static_cast<int64_t>(parts_.size());
    for (int64_t t = 0; t < count; ++t)
      parts_[t].left.store(word({items * t / count, items * (t + 1) / count}), std::memory_order_relaxed);
  }

  struct Range {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
  };

  // What `thread` does next: some `grain` items at least, unless there are fewer; none when there is nothing left that
  // would be worth sharing.
  Range take(int thread, int64_t grain) {
    std::atomic<uint64_t>& own = parts_[thread].left;
    do {
      uint64_t seen = own.load(std::memory_order_relaxed);
      for (Range left = range(seen); left.size() > 0; left = range(seen)) {
        const int64_t middle = left.begin + std::min(left.size(), std::max(grain, left.size() / 2));
        if (own.compare_exchange_weak(seen, word({middle, left.end}), std::memory_order_relaxed))
          return {left.begin, middle};
      }
    } while (take_from_another(own, grain));
    return {0, 0};
  }

 private:
  struct alignas(64) Part {
    std::atomic<uint64_t> left{0};
  };

  static uint64_t word(Range r) { return static_cast<uint64_t>(r.begin) << 32 | static_cast<uint64_t>(r.end); }
  static Range range(uint64_t word) {
    return {static_cast<int64_t>(word >> 32), static_cast<int64_t>(word & 0xffffffffu)};
  }

  // Into the caller's part, which is empty, so that nobody else changes it.
  bool take_from_another(std::atomic<uint64_t>& own, int64_t grain) {
    for (;;) {
      Part* most = nullptr;
      uint64_t seen = 0;
      for (Part& part : parts_) {
        const uint64_t left = part.left.load(std::memory_order_relaxed);
        if (range(left).size() > range(seen).size()) {
          most = &part;
          seen = left;
        }
      }
      const Range left = range(seen);
      if (left.size() < 2 * grain) return false;
      const int64_t middle = left.begin + left.size() / 2;
      if (!most->left.compare_exchange_strong(seen, word({left.begin, middle}), std::memory_order_relaxed)) continue;
      own.store(word({middle, left.end}), std::memory_order_relaxed);
      return true;
    }
  }

  std::vector<Part> parts_;
};

}  // namespace simplear
