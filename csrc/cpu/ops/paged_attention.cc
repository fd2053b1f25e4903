// Attention by chunks of 128 keys that begin at fixed positions of the sequence. A chunk is computed as if it were the
// whole context (all scores, one maximum, all weights, one weighted sum) and chunks are merged in order of position.
// Neither depends on who computes what, so a context may be cut between any threads at any chunk (contract C2).
#include "kernels/paged_attention/paged_attention.h"

#include <math.h>

#include "cpu/attention_schedule.h"
#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

constexpr int kVecsPerBlock = kKvBlockSize / kLanes;

// Heads of a group that pass over keys and values together, so that each is loaded and widened once for all of them.
// With the vectors of a block, or as many of a value, they make up to 8 independent chains of additions, which is what
// hides the latency of one. What a head computes does not depend on it.
constexpr int kMaxHeadsAtOnce = 8 / kVecsPerBlock;

// The blocks of a chunk, and the keys that are read after it.
template <class T>
struct Chunk {
  static constexpr bool kHasScales = sizeof(T) == 1;
  int num_keys, num_blocks;
  const T *keys[kChunkBlocks], *values[kChunkBlocks], *ahead[kChunkBlocks];
  const float *key_scales[kChunkBlocks], *value_scales[kChunkBlocks];
};

inline int num_keys_of(const Item& item, int64_t chunk) {
  const int64_t left = item.num_keys - chunk * kChunkKeys;
  return static_cast<int>(left < kChunkKeys ? left : kChunkKeys);
}
inline int num_blocks_of(int num_keys) { return (num_keys + kKvBlockSize - 1) / kKvBlockSize; }

// `next`, `next_chunk`: what this thread does after this chunk.
template <class T>
Chunk<T> locate(const PagedAttentionParams& p, const Item& item, int64_t chunk, const Item& next, int64_t next_chunk) {
  const int64_t block_elements = int64_t{kKvBlockSize} * p.head_dim;
  const T* keys = static_cast<const T*>(p.k_cache.data);
  const T* values = static_cast<const T*>(p.v_cache.data);
  // Blocks are those of one KV head.
  const auto block_of = [&](const Item& of, int64_t index) {
    return int64_t{p.block_table[of.seq * p.max_blocks_per_seq + index]} * p.num_kv_heads + of.group;
  };
  Chunk<T> c;
  c.num_keys = num_keys_of(item, chunk);
  c.num_blocks = num_blocks_of(c.num_keys);
  const int num_ahead = num_blocks_of(num_keys_of(next, next_chunk));
  for (int b = 0; b < c.num_blocks; ++b) {
    const int64_t block = block_of(item, chunk * kChunkBlocks + b);
    c.keys[b] = keys + block * block_elements;
    c.values[b] = values + block * block_elements;
    c.ahead[b] = b < num_ahead ? keys + block_of(next, next_chunk * kChunkBlocks + b) * block_elements : c.values[b];
    if (Chunk<T>::kHasScales) {
      c.key_scales[b] = p.k_scale + block * kKvBlockSize;
      c.value_scales[b] = p.v_scale + block * kKvBlockSize;
    }
  }
  return c;
}

// 2^x for x <= 0, relative error below 2e-7; exactly 0 below -126.5. NaN stays NaN.
// A degree-5 minimax polynomial on [-1/2, 1/2]. Scores are taken to base 2 because that spares exp()'s range reduction.
inline Vec exp2_of_negative(Vec x) {
  const Vec clamped = splat(-127.0f) > x ? splat(-127.0f) : x;
  const Vec shifted = clamped + 12582912.0f;  // the low mantissa bits now hold round(x)
  const Vec f = clamped - (shifted - 12582912.0f);
  Vec y = fma(splat(1.326472382e-3f), f, splat(9.671512991e-3f));
  y = fma(y, f, splat(5.550733581e-2f));
  y = fma(y, f, splat(2.402224243e-1f));
  y = fma(y, f, splat(6.931470037e-1f));
  y = fma(y, f, splat(1.0f));
  return y * reinterpret_cast<Vec>((reinterpret_cast<VecI>(shifted) + 127) << 23);
}

constexpr float kLog2E = 1.44269504f;

// The first `count` elements, then zeros; nothing behind them is read.
template <class T>
inline Vec load_first(const T* from, int64_t count) {
  T elements[kLanes] = {};
  memcpy(elements, from, (count < kLanes ? count : kLanes) * sizeof(T));
  return load(elements);
}

constexpr int32_t kIota[kKvBlockSize] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Few heads have few sums to add to, and each addition waits for the one before it in its sum. So the fewer sums there
// are, the more blocks of keys, or vectors of a value, are taken at once.
constexpr int at_once(int sums) { return sums > 4 ? 1 : sums > 2 ? 2 : 4; }

// scores[h][j] = scale * q[h] . k[j] for B blocks from `first` on, d ascending in every lane; -infinity for keys that
// do not exist. Asks for the values, which are read next, on the way.
template <int H, int B, class T>
inline void block_scores(const float* q, const Chunk<T>& c, int first, int64_t dim, float scale,
                         float (*scores)[kChunkKeys]) {
  Vec acc[B][H][kVecsPerBlock] = {};
  for (int64_t d = 0; d < dim; ++d) {
    Vec keys[B][kVecsPerBlock];
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
      __builtin_prefetch(c.values[first + b] + d * kKvBlockSize, 0, 2);
#pragma GCC unroll 4
      for (int v = 0; v < kVecsPerBlock; ++v) keys[b][v] = load(c.keys[first + b] + d * kKvBlockSize + v * kLanes);
    }
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) {
      const Vec qd = splat(q[h * dim + d]);
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b)
#pragma GCC unroll 4
        for (int v = 0; v < kVecsPerBlock; ++v) acc[b][h][v] = fma(qd, keys[b][v], acc[b][h][v]);
    }
  }
#pragma GCC unroll 4
  for (int b = 0; b < B; ++b)
#pragma GCC unroll 4
    for (int v = 0; v < kVecsPerBlock; ++v) {
      const int key = (first + b) * kKvBlockSize + v * kLanes;
      const VecI exists = load_as<VecI>(kIota) < c.num_keys - key;
      const Vec factor = Chunk<T>::kHasScales ? load(c.key_scales[first + b] + v * kLanes) * scale : splat(scale);
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) store(scores[h] + key, exists ? acc[b][h][v] * factor : splat(-INFINITY));
    }
}

template <int H, int B = at_once(H * kVecsPerBlock), class T>
inline void chunk_scores(const float* q, const Chunk<T>& c, int64_t dim, float scale, float (*scores)[kChunkKeys],
                         int first = 0) {
  for (; first + B <= c.num_blocks; first += B) block_scores<H, B>(q, c, first, dim, scale, scores);
  if constexpr (B > 1)
    if (first < c.num_blocks) chunk_scores<H, B / 2>(q, c, dim, scale, scores, first);
}

// Turns one head's scores, to base 2, into weights relative to their maximum: what codes of values, or values
// themselves, are to be multiplied by.
template <class T>
inline void chunk_weights(const Chunk<T>& c, float* scores, float& highest, float& sum) {
  const int count = c.num_blocks * kKvBlockSize;
  Vec top = load(scores);
  for (int j = kLanes; j < count; j += kLanes) top = max(top, load(scores + j));
  highest = reduce_max(top);
  Vec total{};
  for (int j = 0; j < count; j += kLanes) {
    const Vec weight = exp2_of_negative(load(scores + j) - highest);
    total += weight;
    if (Chunk<T>::kHasScales) store(scores + j, weight * load(c.value_scales[j / kKvBlockSize] + j % kKvBlockSize));
    else store(scores + j, weight);
  }
  sum = reduce_add(total);
}

// acc[h][i...] = sum_j weights[h][j] v[j][i...] over V vectors of a value; j ascending.
// kLast: V is 1, and the value may end within this vector. Asks for the keys that are read next.
template <int H, int V, bool kLast, class T>
inline void chunk_values(const float (*weights)[kChunkKeys], const Chunk<T>& c, int64_t dim, int64_t i, float* acc,
                         int64_t stride) {
  Vec sum[H][V] = {};
  for (int b = 0; b < c.num_blocks; ++b) {
    const int first = b * kKvBlockSize;
    const T* value = c.values[b] + i;
    const T* next = c.ahead[b] + i * kKvBlockSize;
    const int end = c.num_keys - first < kKvBlockSize ? c.num_keys - first : kKvBlockSize;
    for (int j = 0; j < end; ++j, value += dim, next += V * kLanes) {
      __builtin_prefetch(next, 0, 2);
      Vec values[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) values[v] = kLast ? load_first(value, dim - i) : load(value + v * kLanes);
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) {
        const Vec weight = splat(weights[h][first + j]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[h][v] = fma(weight, values[v], sum[h][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < H; ++h)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(acc + h * stride + i + v * kLanes, sum[h][v]);
}

// A chunk as if it were the whole context: as many heads at once as registers allow, then the rest.
template <int H = kMaxHeadsAtOnce, class T>
[[gnu::noinline]] void attend_chunk(const float* q, const Chunk<T>& c, int64_t dim, float scale, int64_t head,
                                    int64_t heads, const Partial& out) {
  for (; heads - head >= H; head += H) {
    alignas(64) float scores[H][kChunkKeys];
    chunk_scores<H>(q + head * dim, c, dim, scale, scores);
    for (int h = 0; h < H; ++h) chunk_weights(c, scores[h], out.highest(head + h), out.sum(head + h));
    float* acc = out.rows + head * out.stride();
    int64_t i = 0;
    constexpr int kVecs = at_once(H) > kVecsPerBlock ? at_once(H) : kVecsPerBlock;
    for (; i + kVecs * kLanes <= dim; i += kVecs * kLanes)
      chunk_values<H, kVecs, false>(scores, c, dim, i, acc, out.stride());
    for (; i < dim; i += kLanes) chunk_values<H, 1, true>(scores, c, dim, i, acc, out.stride());
  }
  if constexpr (H > 1)
    if (head < heads) attend_chunk<H - 1>(q, c, dim, scale, head, heads, out);
}

void merge(const PagedAttentionParams& p, const Partial& total, const Partial& later) {
  for (int64_t h = 0; h < p.num_heads / p.num_kv_heads; ++h) {
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
  for (int64_t h = 0; h < heads; ++h) {
    const float* from = total.rows + h * total.stride();
    const float inverse = 1.0f / total.sum(h);
    T* out = static_cast<T*>(p.out.data) + (item.row * p.num_heads + item.group * heads + h) * dim;
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
template <class T>
void attend_part(const PagedAttentionParams& p, const Schedule& s, int thread) {
  const Cut &from = s.cuts[thread], &to = s.cuts[thread + 1];
  const int64_t heads = p.num_heads / p.num_kv_heads;
  const Partial total = s.own_partial(thread, 0), one = s.own_partial(thread, 1);
  Item item, next;
  move_to(p, from.item, item);
  int64_t chunk = from.chunk;
  for (int64_t i = from.item; i < to.item + to.is_within(); ++i, chunk = 0, item = next) {
    const int64_t end = i == to.item ? to.chunk : item.num_chunks();
    const bool is_cut = chunk > 0 || end < item.num_chunks();
    const int slot = chunk > 0 ? from.slot : to.slot;
    next = item;
    if (i + 1 < num_queries(p) * p.num_kv_heads) move_to(p, i + 1, next);
    for (; chunk < end; ++chunk) {
      const Partial out = is_cut ? s.shared_partial(slot, chunk) : chunk == 0 ? total : one;
      const bool is_last = chunk + 1 == end;
      const Chunk<T> c = locate<T>(p, item, chunk, is_last ? next : item, is_last ? 0 : chunk + 1);
      attend_chunk(p.q + (item.row * p.num_heads + item.group * heads) * p.head_dim, c, p.head_dim, p.scale * kLog2E, 0,
                   heads, out);
      if (!is_cut && chunk > 0) merge(p, total, one);
    }
    if (!is_cut) write_out(p, item, total);
  }
}

template <class T>
void paged_attention_as(const PagedAttentionParams& p, ThreadPool& pool) {
  const Schedule s = make_schedule(p, pool);
  if (s.num_threads == 1) return attend_part<T>(p, s, 0);
  parallel_for(pool, s.num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) attend_part<T>(p, s, static_cast<int>(t));
  });
  if (!s.has_cut_items) return;
  parallel_for(pool, s.num_threads, grain_of(s.max_chunks * s.partial_floats), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      if (!s.cuts[t].is_within() || s.cuts[t].slot != t) continue;
      Item item;
      move_to(p, s.cuts[t].item, item);
      const int slot = static_cast<int>(t);
      const Partial total = s.shared_partial(slot, 0);
      for (int64_t chunk = 1; chunk < item.num_chunks(); ++chunk) merge(p, total, s.shared_partial(slot, chunk));
      write_out(p, item, total);
    }
  });
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
