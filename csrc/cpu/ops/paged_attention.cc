// Attention by chunks of 128 keys that begin at fixed positions of the sequence. A chunk is computed as if it were the
// whole context (all scores, one maximum, all weights, one weighted sum) and chunks are merged in order of position.
// Neither depends on who computes what, so a context may be cut between any threads at any chunk (contract C2).
#include "kernels/paged_attention/paged_attention.h"

#include "cpu/amx_attention.h"
#include "cpu/attention_schedule.h"
#include "cpu/vector_attention.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

// Adds a chunk to those before it, for the rows that have keys in it.
void merge(const PagedAttentionParams& p, const Item& item, int64_t chunk, const Partial& total, const Partial& later) {
  const int64_t heads = p.num_heads / p.num_kv_heads;
  int64_t row = 0;
  while (item.num_keys_of_row(row) <= chunk * kChunkKeys) ++row;
  for (int64_t h = row * heads; h < item.num_rows * heads; ++h) {
    const float highest = later.highest(h) > total.highest(h) ? later.highest(h) : total.highest(h);
    const Vec before = exp2_of_negative(splat(total.highest(h) - highest));
    const Vec after = exp2_of_negative(splat(later.highest(h) - highest));
    float* to = total.rows + h * total.stride();
    const float* from = later.rows + h * later.stride();
    for (int64_t i = 0; i < total.padded; i += kLanes) store(to + i, fma(load(from + i), after, load(to + i) * before));
    total.highest(h) = highest;
    total.sum(h) = total.sum(h) * before[0] + later.sum(h) * after[0];
  }
}

template <class T>
void write_as(const PagedAttentionParams& p, const Item& item, const Partial& total) {
  const int64_t dim = p.head_dim, heads = p.num_heads / p.num_kv_heads;
  for (int64_t h = 0; h < item.num_rows * heads; ++h) {
    const float* from = total.rows + h * total.stride();
    const float inverse = 1.0f / total.sum(h);
    T* out =
        static_cast<T*>(p.out.data) + ((item.row + h / heads) * p.num_heads + item.group * heads + h % heads) * dim;
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) store(out + i, load(from + i) * inverse);
    for (; i < dim; ++i) store_one(out + i, from[i] * inverse);
  }
}

void write_out(const PagedAttentionParams& p, const Item& item, const Partial& total) {
  if (p.out.dtype == DType::kBFloat16) write_as<uint16_t>(p, item, total);
  else write_as<float>(p, item, total);
}

// What lies between two cuts.
template <class Attention, class T>
void attend_part(const Items& items, const Schedule& s, int thread) {
  const PagedAttentionParams& p = items.p;
  const Cut &from = s.cuts[thread], &to = s.cuts[thread + 1];
  const Partial total = s.own_partial(thread, 0), later[2] = {s.own_partial(thread, 1), s.own_partial(thread, 2)};
  Attention attention(p, s.scratch + thread * s.scratch_bytes);
  Item item, next;
  items.move_to(from.item, item);
  int64_t chunk = from.chunk;
  for (int64_t i = from.item; i < to.item + to.is_within(); ++i, chunk = 0, item = next) {
    const int64_t end = i == to.item ? to.chunk : item.num_chunks();
    const bool is_cut = chunk > 0 || end < item.num_chunks();
    const int slot = chunk > 0 ? from.slot : to.slot;
    next = item;
    if (i + 1 < items.size()) items.move_to(i + 1, next);
    attention.start(item);
    const auto done = [&](int64_t computed) {
      if (!is_cut && computed > 0) merge(p, item, computed, total, later[computed % 2]);
    };
    for (; chunk < end; ++chunk) {
      const Partial out = is_cut ? s.shared_partial(slot, chunk) : chunk == 0 ? total : later[chunk % 2];
      const bool is_last = chunk + 1 == end;
      const Chunk<T> c = locate<T>(p, item, chunk, is_last ? next : item, is_last ? 0 : chunk + 1);
      attention.attend(chunk, c, out, done);
    }
    attention.finish(done);
    if (!is_cut) write_out(p, item, total);
  }
  attention.leave();
}

template <class Attention, class T>
void attend_with(const PagedAttentionParams& p, ThreadPool& pool) {
  const Items items(p, Attention::kRowsAtOnce);
  const Schedule s = make_schedule(items, Attention::scratch_bytes(p), pool);
  if (s.num_threads == 1) return attend_part<Attention, T>(items, s, 0);
  parallel_for(pool, s.num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) attend_part<Attention, T>(items, s, static_cast<int>(t));
  });
  if (!s.has_cut_items) return;
  parallel_for(pool, s.num_threads, grain_of(s.max_chunks * s.partial_floats), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      if (!s.cuts[t].is_within() || s.cuts[t].slot != t) continue;
      Item item;
      items.move_to(s.cuts[t].item, item);
      const int slot = static_cast<int>(t);
      const Partial total = s.shared_partial(slot, 0);
      for (int64_t chunk = 1; chunk < item.num_chunks(); ++chunk)
        merge(p, item, chunk, total, s.shared_partial(slot, chunk));
      write_out(p, item, total);
    }
  });
}

template <class T>
void paged_attention_as(const PagedAttentionParams& p, ThreadPool& pool) {
#if defined(__AMX_TILE__)
  if constexpr (sizeof(T) < sizeof(float))
    if (TileAttention<T>::takes(p)) return attend_with<TileAttention<T>, T>(p, pool);
#endif
  attend_with<VectorAttention<T>, T>(p, pool);
}

void paged_attention(const PagedAttentionParams& p, ThreadPool& pool) {
  if (num_queries(p) == 0) return;
  if (p.k_cache.dtype == DType::kInt8) paged_attention_as<int8_t>(p, pool);
  else if (p.k_cache.dtype == DType::kBFloat16) paged_attention_as<uint16_t>(p, pool);
  else paged_attention_as<float>(p, pool);
}

}  // namespace

SIMPLEAR_CPU_OP(paged_attention, PagedAttentionParams, kPagedAttentionFields, paged_attention);

}  // namespace simplear::SIMPLEAR_ISA
