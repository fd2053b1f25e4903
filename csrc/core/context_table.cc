#include "core/context_table.h"

#include <limits>

namespace simplear {
namespace {

uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
  return hash ^ (hash >> 29);
}

uint32_t tag_of(const Surroundings& a, uint32_t context) {
  uint64_t hash = mix(0x243F6A8885A308D3u, context);
  const int32_t codes[] = {a.left, a.left2, a.above, a.above_left, a.above_right, a.above2, a.position};
  for (uint32_t bit = 0; bit < 7; ++bit)
    if (context >> bit & 1) hash = mix(hash, static_cast<uint32_t>(codes[bit]));
  if (context & kPrompt) hash = mix(hash, a.prompt);
  const auto tag = static_cast<uint32_t>(hash >> 32);
  return tag == 0 ? 1 : tag;
}

float share_of(const ContextTable::Entry& entry) { return entry.num_right / (entry.num_seen + 0.6f); }

}  // namespace

const ContextTable::Entry* ContextTable::find(uint32_t tag) const {
  if (slots_.empty() || tag == 0) return nullptr;
  for (int i = 0; i < kProbes; ++i) {
    const Entry& entry = slots_[(tag + i) & (slots_.size() - 1)];
    if (entry.tag == tag) return &entry;
    if (entry.tag == 0) return nullptr;
  }
  return nullptr;
}

// The entry of `tag`, or an empty one for it; in a full table the least seen of its neighbours makes room.
ContextTable::Entry& ContextTable::find_or_replace(uint32_t tag) {
  if (2 * size_ >= static_cast<int64_t>(slots_.size()) && slots_.size() < kLastCapacity) grow();
  Entry* rarest = nullptr;
  for (int i = 0; i < kProbes; ++i) {
    Entry& entry = slots_[(tag + i) & (slots_.size() - 1)];
    if (entry.tag == tag) return entry;
    if (entry.tag == 0) {
      ++size_;
      entry.tag = tag;
      return entry;
    }
    if (!rarest || entry.num_seen < rarest->num_seen) rarest = &entry;
  }
  *rarest = Entry{tag};
  return *rarest;
}

void ContextTable::grow() {
  const std::vector<Entry> old = std::move(slots_);
  slots_.assign(old.empty() ? kFirstCapacity : 2 * old.size(), Entry{});
  size_ = 0;
  for (const Entry& entry : old)
    if (entry.tag != 0) find_or_replace(entry.tag) = entry;
}

void ContextTable::insert(const Entry& entry) {
  if (entry.tag != 0) find_or_replace(entry.tag) = entry;
}

std::vector<ContextTable::Entry> ContextTable::telling_entries(int32_t min_seen) const {
  std::vector<Entry> telling;
  for (const Entry& entry : slots_) {
    if (entry.tag == 0 || entry.num_seen < min_seen) continue;
    const Entry* parent = find(entry.parent);
    while (parent && parent->num_seen < min_seen) parent = find(parent->parent);
    if (!parent || parent->code != entry.code || share_of(*parent) < share_of(entry)) telling.push_back(entry);
  }
  return telling;
}

void ContextTable::learn(const Surroundings& around, std::span<const uint32_t> contexts, int32_t code) {
  for (size_t i = 0; i < contexts.size(); ++i) {
    Entry& entry = find_or_replace(tag_of(around, contexts[i]));
    size_t parent = i + 1;
    while (parent < contexts.size() && (contexts[parent] & ~contexts[i]) != 0) ++parent;
    entry.parent = parent < contexts.size() ? tag_of(around, contexts[parent]) : 0;
    if (entry.num_seen == std::numeric_limits<uint16_t>::max()) {
      entry.num_right /= 2;
      entry.num_seen /= 2;
    }
    ++entry.num_seen;
    if (entry.num_right > 0 && entry.code == code) {
      ++entry.num_right;
    } else if (2 * entry.num_right < entry.num_seen) {
      // No longer the majority: the newcomer gets its chance.
      entry.code = code;
      entry.num_right = 1;
      entry.num_seen = entry.num_seen == 1 ? 1 : 2;
    }
  }
}

ContextTable::Prediction ContextTable::predict(const Surroundings& around, std::span<const uint32_t> contexts) const {
  for (uint32_t context : contexts)
    if (const Entry* entry = find(tag_of(around, context))) return {entry->code, share_of(*entry)};
  return {};
}

}  // namespace simplear
