#include "core/work_parts.h"

#include <algorithm>

#include "core/check.h"

namespace simplear {
namespace {

// How many others a thread looks at: each look costs a line of another core's cache.
constexpr int kNeighbours = 4;

uint64_t word_of(int64_t begin, int64_t end) { return static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end); }

WorkParts::Range range_of(uint64_t word) {
  return {static_cast<int64_t>(word >> 32), static_cast<int64_t>(word & 0xffffffffu)};
}

int64_t size_of(WorkParts::Range range) { return range.end - range.begin; }

}  // namespace

void WorkParts::deal(int64_t items) {
  check(items < int64_t{1} << 32, ErrorKind::kInternal, "threads: ", items, " items are too many to share");
  const auto count = static_cast<int64_t>(parts_.size());
  for (int64_t t = 0; t < count; ++t)
    parts_[t].left.store(word_of(items * t / count, items * (t + 1) / count), std::memory_order_relaxed);
}

WorkParts::Range WorkParts::take(int thread, int64_t grain) {
  Part& own = parts_[thread];
  do {
    uint64_t seen = own.left.load(std::memory_order_relaxed);
    for (Range left = range_of(seen); size_of(left) > 0; left = range_of(seen)) {
      const int64_t middle = left.begin + std::min(size_of(left), std::max(grain, size_of(left) / 2));
      if (own.left.compare_exchange_weak(seen, word_of(middle, left.end), std::memory_order_relaxed))
        return {left.begin, middle};
    }
  } while (take_from_another(thread, grain));
  return {0, 0};
}

// Half of what is left of the largest part nearby, into the caller's: that one is empty, so nobody else changes it.
bool WorkParts::take_from_another(int thread, int64_t grain) {
  const int count = static_cast<int>(parts_.size());
  for (;;) {
    Part* most = nullptr;
    uint64_t seen = 0;
    for (int i = 1; i <= kNeighbours && i < count; ++i) {
      Part& part = parts_[(thread + i) % count];
      const uint64_t left = part.left.load(std::memory_order_relaxed);
      if (size_of(range_of(left)) <= size_of(range_of(seen))) continue;
      most = &part;
      seen = left;
    }
    const Range left = range_of(seen);
    if (size_of(left) < 2 * grain) return false;
    const int64_t middle = left.begin + size_of(left) / 2;
    if (!most->left.compare_exchange_strong(seen, word_of(left.begin, middle), std::memory_order_relaxed)) continue;
    parts_[thread].left.store(word_of(middle, left.end), std::memory_order_relaxed);
    return true;
  }
}

}  // namespace simplear
