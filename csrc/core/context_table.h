// Which code followed which neighbours, in the pictures drawn so far.
//
// A context is a choice of what is known about a position: codes to the left and above, the position itself, the
// prompt. For each context that occurred the table keeps the code that most often stood there. It is a hash table of
// tags, so two contexts may be taken for one another; a prediction is a guess anyway. It knows nothing about requests
// or steps.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace simplear {

// What surrounds a position; -1 where there is nothing.
struct Surroundings {
  int32_t left = -1, left2 = -1, above = -1, above_left = -1, above_right = -1, above2 = -1;
  int32_t position = 0;
  uint64_t prompt = 0;  // hash
};

// Bits of a context.
enum Known : uint32_t {
  kLeftCode = 1,
  kLeft2Code = 2,
  kAboveCode = 4,
  kAboveLeftCode = 8,
  kAboveRightCode = 16,
  kAbove2Code = 32,
  kPosition = 64,
  kPrompt = 128,
};

class ContextTable {
 public:
  struct Entry {
    uint32_t tag = 0;     // 0: free
    uint32_t parent = 0;  // tag of the next context that knows less; 0: none
    int32_t code = 0;
    uint16_t num_right = 0, num_seen = 0;  // how often `code` stood in this context, and how often anything did
  };
  struct Prediction {
    int32_t code = -1;   // -1: nothing is known
    float share = 0.0f;  // of the times that the context was seen, a little less where those are few
  };

  // Notes that `code` stood here, in each of `contexts`.
  void learn(const Surroundings& around, std::span<const uint32_t> contexts, int32_t code);

  // What the first of `contexts` that occurred before says.
  Prediction predict(const Surroundings& around, std::span<const uint32_t> contexts) const;

  // The entries that are worth keeping in a file: seen at least `min_seen` times, and not saying what the context that
  // knows less says as surely.
  std::vector<Entry> telling_entries(int32_t min_seen) const;
  void insert(const Entry& entry);

  int64_t size() const { return size_; }

 private:
  static constexpr size_t kFirstCapacity = size_t{1} << 12, kLastCapacity = size_t{1} << 20;
  static constexpr int kProbes = 8;

  const Entry* find(uint32_t tag) const;
  Entry& find_or_replace(uint32_t tag);
  void grow();

  std::vector<Entry> slots_;  // a power of two of them
  int64_t size_ = 0;
};

}  // namespace simplear
