// What paged attention computes on, and which thread computes what.
//
// The keys of a sequence are cut into chunks at fixed positions. Who computes a chunk changes nothing in it, and chunks
// are merged in order of position whoever computed them: no result depends on what is decided here (contract C2).
#pragma once

#include "cpu/simd.h"
#include "kernels/paged_attention/paged_attention.h"

namespace simplear::SIMPLEAR_ISA {

constexpr int kChunkBlocks = 8, kChunkKeys = kChunkBlocks * kKvBlockSize;

// Queries that belong to a sequence; rows behind them are padding.
inline int64_t num_queries(const PagedAttentionParams& p) { return p.query_start_loc[p.num_seqs]; }

// Query heads that share their keys and values: those of a group, of rows that follow one another in a sequence.
// Items are numbered with rows running fastest: rows of a draft window or prompt come one after the other on the same
// thread and find their keys in its cache.
struct Item {
  int64_t seq = 0, row = 0, num_rows = 0, group = 0;
  int64_t num_keys = 0;    // of its last row; each row before it has one less
  int64_t num_before = 0;  // items of a group in the sequences before this one
  int64_t num_chunks() const { return (num_keys + kChunkKeys - 1) / kChunkKeys; }
  int64_t num_keys_of_row(int64_t r) const { return num_keys - (num_rows - 1 - r); }
  Item single(int64_t r) const { return {seq, row + r, 1, group, num_keys_of_row(r), 0}; }
};

// The items of a step, of at most `rows_at_once` rows each.
struct Items {
  const PagedAttentionParams& p;
  int64_t rows_at_once, num_in_group = 0;

  Items(const PagedAttentionParams& params, int64_t rows) : p(params), rows_at_once(rows) {
    for (int64_t seq = 0; seq < p.num_seqs; ++seq) num_in_group += num_in(seq);
  }
  int64_t num_rows(int64_t seq) const { return p.query_start_loc[seq + 1] - p.query_start_loc[seq]; }
  int64_t num_in(int64_t seq) const { return (num_rows(seq) + rows_at_once - 1) / rows_at_once; }
  int64_t size() const { return num_in_group * p.num_kv_heads; }

  // Moves to item `index`; `item` is any other one, best the one before.
  void move_to(int64_t index, Item& item) const {
    item.group = index / num_in_group;
    index %= num_in_group;
    if (index < item.num_before) item.seq = item.num_before = 0;
    for (; item.num_before + num_in(item.seq) <= index; ++item.seq) item.num_before += num_in(item.seq);
    const int64_t rows = num_rows(item.seq), part = index - item.num_before, parts = num_in(item.seq);
    const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
    item.row = p.query_start_loc[item.seq] + begin;
    item.num_rows = end - begin;
    item.num_keys = p.context_lens[item.seq] - (rows - end);
  }
};

// What a stretch of keys comes to, for all heads of an item, row by row: `stride` floats for each with the weighted sum
// of values (padded to whole vectors), then the highest score and the sum of weights.
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

constexpr int kOwnPartials = 3;  // of a thread: all chunks up to one, that one, and the one after it

// How the work is dealt out: evenly by blocks of keys. No result depends on it.
struct Schedule {
  int num_threads = 1;
  bool has_cut_items = false;
  int64_t max_chunks = 1, padded, partial_floats, scratch_bytes;
  Cut* cuts;      // [num_threads + 1]
  float* own;     // [num_threads, kOwnPartials, partial_floats]
  float* shared;  // [num_threads, max_chunks, partial_floats]
  char* scratch;  // [num_threads, scratch_bytes], each at a cache line

  Partial own_partial(int thread, int i) const { return {own + (kOwnPartials * thread + i) * partial_floats, padded}; }
  Partial shared_partial(int slot, int64_t chunk) const {
    return {shared + (slot * max_chunks + chunk) * partial_floats, padded};
  }
};

// `scratch_bytes`: what a thread needs to compute a chunk, in whole cache lines.
inline Schedule make_schedule(const Items& items, int64_t scratch_bytes, ThreadPool& pool) {
  const PagedAttentionParams& p = items.p;
  const int64_t heads = p.num_heads / p.num_kv_heads;
  Schedule s;
  s.scratch_bytes = scratch_bytes;
  s.padded = (p.head_dim + kLanes - 1) / kLanes * kLanes;
  const auto num_blocks = [](const Item& item) {
    return item.num_rows * ((item.num_keys + kKvBlockSize - 1) / kKvBlockSize);
  };
  int64_t total = 0, most_rows = 0;
  Item item;
  for (int64_t i = 0; i < items.num_in_group; ++i) {
    items.move_to(i, item);
    total += num_blocks(item) * p.num_kv_heads;
    if (item.num_rows > most_rows) most_rows = item.num_rows;
    if (item.num_chunks() > s.max_chunks) s.max_chunks = item.num_chunks();
  }
  s.partial_floats = most_rows * heads * (s.padded + kLanes);
  // The two products with a block's keys and values take as long as 6 simple operations on each element of the queries.
  const int64_t grains = total / grain_of(6 * heads * p.head_dim);
  if (grains > 1) s.num_threads = static_cast<int>(grains < pool.size() ? grains : pool.size());

  const int64_t partials = s.num_threads * (kOwnPartials + (s.num_threads > 1 ? s.max_chunks : 0));
  const size_t bytes = partials * s.partial_floats * sizeof(float) + (s.num_threads + 1) * sizeof(Cut);
  s.scratch = static_cast<char*>(pool.scratch(0, s.num_threads * scratch_bytes + bytes));
  s.own = reinterpret_cast<float*>(s.scratch + s.num_threads * scratch_bytes);
  s.shared = s.own + kOwnPartials * s.num_threads * s.partial_floats;
  s.cuts = reinterpret_cast<Cut*>(s.own + partials * s.partial_floats);
  s.cuts[0] = {0, 0, 0};
  s.cuts[s.num_threads] = {items.size(), 0, 0};
  int64_t index = 0, before = 0;  // an item, and the blocks of all items before it
  for (int t = 1; t < s.num_threads; ++t) {
    const int64_t target = total * t / s.num_threads;
    for (items.move_to(index, item); before + num_blocks(item) <= target; items.move_to(++index, item))
      before += num_blocks(item);
    const int64_t chunk = ((target - before) / item.num_rows + kChunkBlocks / 2) / kChunkBlocks;
    s.cuts[t] = chunk < item.num_chunks() ? Cut{index, chunk, t} : Cut{index + 1, 0, t};
    if (s.cuts[t - 1].is_within() && s.cuts[t - 1].item == s.cuts[t].item) s.cuts[t].slot = s.cuts[t - 1].slot;
    s.has_cut_items |= s.cuts[t].is_within();
  }
  return s;
}

}  // namespace simplear::SIMPLEAR_ISA
