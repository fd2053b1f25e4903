#include "core/block_allocator.h"

#include "core/check.h"

namespace simplear {

BlockAllocator::BlockAllocator(int32_t num_blocks, int32_t block_size) : block_size_(block_size), blocks_(num_blocks) {
  for (int32_t b = 0; b < num_blocks; ++b) blocks_[b].free_position = free_.insert(free_.end(), b);
}

bool BlockAllocator::reserve(std::span<const int32_t> prompt, int32_t count, std::vector<int32_t>& blocks) {
  const auto shareable = prompt.empty() ? size_t{0} : (prompt.size() - 1) / block_size_;
  const auto key_of = [&](int64_t parent, size_t i) {
    PrefixKey key{parent};
    for (int32_t t = 0; t < block_size_; ++t) key.push_back(prompt[i * block_size_ + t]);
    return key;
  };
  std::vector<int32_t> shared;
  int64_t parent = 0;
  while (shared.size() < shareable && static_cast<int32_t>(shared.size()) < count) {
    const auto found = prefixes_.find(key_of(parent, shared.size()));
    if (found == prefixes_.end()) break;
    shared.push_back(found->second);
    parent = blocks_[found->second].prefix_id;
  }
  int32_t from_free = count - static_cast<int32_t>(shared.size());
  for (int32_t b : shared) from_free += blocks_[b].ref_count == 0;
  if (from_free > num_free()) return false;

  for (int32_t b : shared) take(b);
  blocks = shared;
  while (static_cast<int32_t>(blocks.size()) < count) {
    const int32_t b = free_.front();
    take(b);
    Block& block = blocks_[b];
    forget(block);
    block.filled = 0;
    const size_t i = blocks.size();
    if (i < shareable) {
      block.prefix_id = next_prefix_id_++;
      block.entry = prefixes_.emplace(key_of(parent, i), b).first;
      parent = block.prefix_id;
    }
    blocks.push_back(b);
  }
  return true;
}

void BlockAllocator::release(const std::vector<int32_t>& blocks) {
  // The last first: a prompt that has lost its first block cannot be found any more, whatever else of it is left.
  for (size_t i = blocks.size(); i-- > 0;) {
    const int32_t b = blocks[i];
    Block& block = blocks_[b];
    check(block.ref_count > 0, ErrorKind::kInternal, "KV block ", b, " released twice");
    if (--block.ref_count > 0) continue;
    if (block.filled < block_size_) forget(block);
    // Blocks with nothing worth keeping are taken first.
    block.free_position = free_.insert(block.prefix_id ? free_.end() : free_.begin(), b);
  }
}

void BlockAllocator::forget_prefixes() {
  for (Block& block : blocks_) forget(block);
}

void BlockAllocator::take(int32_t b) {
  if (blocks_[b].ref_count++ == 0) free_.erase(blocks_[b].free_position);
}

void BlockAllocator::forget(Block& block) {
  if (block.prefix_id == 0) return;
  prefixes_.erase(block.entry);
  block.prefix_id = 0;
}

}  // namespace simplear
