// The scheduler's view of memory: fixed-size KV blocks with reference counts.
//
// A request reserves every block it will ever need when it is admitted, because an image's token count is known in
// advance. Hence there is no preemption and no eviction here. A full block of prompt tokens is shared by all sequences
// that begin with the same tokens: the same negative prompt of everybody, the same prompt of several seeds. Such a
// block keeps its contents after its last owner has gone, until the space is needed.
//
// How far a block's contents are computed is a fact about the block (`filled`), not about an owner: whichever sequence
// is scheduled next goes on from there, so an owner may be cancelled half way through its prompt.
// Nothing in this file knows about devices or tensors.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <span>
#include <vector>

namespace simplear {

class BlockAllocator {
 public:
  BlockAllocator(int32_t num_blocks, int32_t block_size);

  int32_t num_blocks() const { return static_cast<int32_t>(blocks_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t block_size() const { return block_size_; }

  // Takes `count` blocks for a sequence whose first tokens are `prompt`; the last prompt token is always computed anew,
  // because its logits are wanted. Leaves everything as it was and returns false when there are too few.
  bool reserve(std::span<const int32_t> prompt, int32_t count, std::vector<int32_t>& blocks);

  void release(const std::vector<int32_t>& blocks);

  // Tokens of a block whose keys and values are written or scheduled to be.
  int32_t filled(int32_t block) const { return blocks_[block].filled; }
  void set_filled(int32_t block, int32_t tokens) { blocks_[block].filled = tokens; }

  int32_t ref_count(int32_t block) const { return blocks_[block].ref_count; }

  // Prompt contents are not valid any more (the weights changed); blocks in use stay with their owners, unshared.
  void forget_prefixes();

 private:
  // Identity of a prefix: that of the block before, and this block's tokens. Compared in full, never by hash alone.
  using PrefixKey = std::vector<int64_t>;

  struct Block {
    int32_t ref_count = 0;
    int32_t filled = 0;
    int64_t prefix_id = 0;  // 0: not shareable
    std::map<PrefixKey, int32_t>::iterator entry;
    std::list<int32_t>::iterator free_position;
  };

  void take(int32_t block);
  void forget(Block& block);

  const int32_t block_size_;
  std::vector<Block> blocks_;
  std::list<int32_t> free_;  // least useful first
  std::map<PrefixKey, int32_t> prefixes_;
  int64_t next_prefix_id_ = 1;
};

}  // namespace simplear
