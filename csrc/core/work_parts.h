// Items of an op, dealt out to threads so that all of them end together.
//
// Each thread has a contiguous part, which it takes from the front in pieces that get smaller; one that has finished
// takes half of what a neighbour still has, from the end. So threads of equal speed do what is theirs, as one stream,
// and a thread on a slow core (an efficiency core, a busy machine) holds nobody up. Who computes an item depends on
// timing, so its result must not depend on who does (contract C2).
//
// Work stealing (Blumofe and Leiserson 1999) without deques: items are numbers, so what is left of a part is two of
// them, in one word.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace simplear {

class WorkParts {
 public:
  explicit WorkParts(int num_threads) : parts_(num_threads) {}

  // Before threads ask.
  void deal(int64_t items);

  struct Range {
    int64_t begin, end;
  };

  // What `thread` does next: at least `grain` items, unless its part has fewer; none when nothing is left that would be
  // worth sharing.
  Range take(int thread, int64_t grain);

 private:
  struct alignas(64) Part {
    std::atomic<uint64_t> left{0};
  };

  bool take_from_another(int thread, int64_t grain);

  std::vector<Part> parts_;
};

}  // namespace simplear
