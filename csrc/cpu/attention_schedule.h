// What paged attention computes on, and which thread computes what.
//
// The keys of a sequence are cut into chunks at fixed positions. Who computes a chunk changes nothing in it, and chunks
// are merged in order of position whoever computed them: no result depends on what is decided here (contract C2).
#pragma once

#include "cpu/simd.h"
#include "kernels/paged_attention/paged_attention.h"

namespace simplear::SIMPLEAR_ISA {

constexpr int kChunkBlocks = 8, kChunkKeys = kChunkBlocks * kKvBlockSize;

// Query heads [row, group] that share their keys and values. Items are numbered with the row running fastest: rows of a
// draft window or prompt come one after the other on the same thread and find their keys in its cache.
struct Item {
  int64_t seq = 0, row = 0, group = 0, num_keys = 0;
  int64_t num_chunks() const { return (num_keys + kChunkKeys - 1) / kChunkKeys; }
};

// Queries that belong to a sequence; rows behind them are padding.
inline int64_t num_queries(const PagedAttentionParams& p) { return p.query_start_loc[p.num_seqs]; }

// Moves to item `index`; `item` is any other one, best the one before.
inline void move_to(const PagedAttentionParams& p, int64_t index, Item& item) {
  item.group = index / num_queries(p), item.row = index % num_queries(p);
  if (item.row < p.query_start_loc[item.seq]) item.seq = 0;
  while (p.query_start_loc[item.seq + 1] <= item.row) ++item.seq;
  item.num_keys = p.context_lens[item.seq] - (p.query_start_loc[item.seq + 1] - item.row) + 1;
}

// What a stretch of keys comes to, for all heads of an item: a row of `stride` floats for each head with the weighted
// sum of values (padded to whole vectors), then the highest score and the sum of weights.
struct Partial {
  float* rows;
  int64_t padded;
  int64_t stride() const { return padded + kLanes; }
  float& highest(int64_t h) const { return rows[h * stride() + padded]; }
  float& sum(int64_t h) const { return rows[h * stride() + padded + 1]; }
};

// Where a thread's work begins and the one's before it ends: at a chunk of an item. The partials of an item that is cut
// within go to the shared memory `slot`, the number of its first cut.
struct Cut {
  int64_t item, chunk;
  int slot;
  bool is_within() const { return chunk > 0; }
};

// How the work is dealt out: evenly by blocks of keys. No result depends on it.
struct Schedule {
  int num_threads = 1;
  bool has_cut_items = false;
  int64_t max_chunks = 1, padded, partial_floats;
  Cut* cuts;      // [num_threads + 1]
  float* own;     // [num_threads, 2, partial_floats]
  float* shared;  // [num_threads, max_chunks, partial_floats]

  Partial own_partial(int thread, int i) const { return {own + (2 * thread + i) * partial_floats, padded}; }
  Partial shared_partial(int slot, int64_t chunk) const {
    return {shared + (slot * max_chunks + chunk) * partial_floats, padded};
  }
};

inline Schedule make_schedule(const PagedAttentionParams& p, ThreadPool& pool) {
  const int64_t heads = p.num_heads / p.num_kv_heads;
  Schedule s;
  s.padded = (p.head_dim + kLanes - 1) / kLanes * kLanes;
  s.partial_floats = heads * (s.padded + kLanes);
  const auto num_blocks = [](const Item& item) { return (item.num_keys + kKvBlockSize - 1) / kKvBlockSize; };
  int64_t total = 0;
  Item item;
  for (int64_t row = 0; row < num_queries(p); ++row) {
    move_to(p, row, item);
    total += num_blocks(item) * p.num_kv_heads;
    if (item.num_chunks() > s.max_chunks) s.max_chunks = item.num_chunks();
  }
  // The two products with a block's keys and values take as long as 6 simple operations on each element of the queries.
  const int64_t grains = total / grain_of(6 * heads * p.head_dim);
  if (grains > 1) s.num_threads = static_cast<int>(grains < pool.size() ? grains : pool.size());

  const int64_t partials = s.num_threads * (2 + (s.num_threads > 1 ? s.max_chunks : 0));
  const size_t bytes = partials * s.partial_floats * sizeof(float) + (s.num_threads + 1) * sizeof(Cut);
  s.own = static_cast<float*>(pool.scratch(0, bytes));
  s.shared = s.own + 2 * s.num_threads * s.partial_floats;
  s.cuts = reinterpret_cast<Cut*>(s.own + partials * s.partial_floats);
  s.cuts[0] = {0, 0, 0};
  s.cuts[s.num_threads] = {num_queries(p) * p.num_kv_heads, 0, 0};
  int64_t index = 0, before = 0;  // an item, and the blocks of all items before it
  for (int t = 1; t < s.num_threads; ++t) {
    const int64_t target = total * t / s.num_threads;
    for (move_to(p, index, item); before + num_blocks(item) <= target; move_to(p, ++index, item))
      before += num_blocks(item);
    const int64_t chunk = (target - before + kChunkBlocks / 2) / kChunkBlocks;
    s.cuts[t] = chunk < item.num_chunks() ? Cut{index, chunk, t} : Cut{index + 1, 0, t};
    if (s.cuts[t - 1].is_within() && s.cuts[t - 1].item == s.cuts[t].item) s.cuts[t].slot = s.cuts[t - 1].slot;
    s.has_cut_items |= s.cuts[t].is_within();
  }
  return s;
}

}  // namespace simplear::SIMPLEAR_ISA
