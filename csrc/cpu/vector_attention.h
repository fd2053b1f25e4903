// A chunk of attention on the vector units, for one row of queries.
#pragma once

#include "cpu/attention_chunk.h"

namespace simplear::SIMPLEAR_ISA {

constexpr int kVecsPerBlock = kKvBlockSize / kLanes;

// Heads of a group that pass over keys and values together, so that each is loaded and widened once for all of them.
// With the vectors of a block, or as many of a value, they make up to 8 independent chains of additions, which is what
// hides the latency of one. What a head computes does not depend on it.
constexpr int kMaxHeadsAtOnce = 8 / kVecsPerBlock;

// The first `count` elements, then zeros; nothing behind them is read.
template <class T>
inline Vec load_first(const T* from, int64_t count) {
  T elements[kLanes] = {};
  memcpy(elements, from, (count < kLanes ? count : kLanes) * sizeof(T));
  return load(elements);
}

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
    const T* next = c.next_keys[b] + i * kKvBlockSize;
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

template <class T>
struct VectorAttention {
  static constexpr int64_t kRowsAtOnce = 1;
  static int64_t scratch_bytes(const PagedAttentionParams&) { return 0; }

  const PagedAttentionParams& p;
  Item item;
  VectorAttention(const PagedAttentionParams& params, char*) : p(params) {}

  void start(const Item& next) { item = next; }
  template <class Done>
  void attend(int64_t chunk, const Chunk<T>& c, const Partial& out, const Done& done) {
    const int64_t heads = p.num_heads / p.num_kv_heads;
    const float* q = p.q + (item.row * p.num_heads + item.group * heads) * p.head_dim;
    attend_chunk(q, c, p.head_dim, p.scale * kLog2E, 0, heads, out);
    done(chunk);
  }
  template <class Done>
  void finish(const Done&) {}
  void leave() {}
};

}  // namespace simplear::SIMPLEAR_ISA
