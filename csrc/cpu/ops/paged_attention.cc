#include "kernels/paged_attention/paged_attention.h"

#include <math.h>

#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

constexpr int kVecsPerBlock = kKvBlockSize / kLanes;

// Heads of a group that pass over a block together, so that each key and value is loaded once for all of them and their
// chains of additions overlap. What a head computes does not depend on it.
constexpr int kMaxHeadsAtOnce = 8 / kVecsPerBlock;

// The running softmax of one query head (Milakov & Gimelshein 2018).
struct HeadState {
  float max, sum;
};

// scores[h][j] = scale * q[h] . k[j] for the 16 keys of a block; d ascending in every lane.
template <int H, class T>
inline void block_scores(const float* q, const T* k_block, int64_t dim, float scale, float (*scores)[kKvBlockSize]) {
  Vec acc[H][kVecsPerBlock] = {};
  for (int64_t d = 0; d < dim; ++d) {
    Vec keys[kVecsPerBlock];
    for (int v = 0; v < kVecsPerBlock; ++v) keys[v] = load(k_block + d * kKvBlockSize + v * kLanes);
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) {
      const Vec qd = splat(q[h * dim + d]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecsPerBlock; ++v) acc[h][v] = fma(qd, keys[v], acc[h][v]);
    }
  }
  for (int h = 0; h < H; ++h)
    for (int v = 0; v < kVecsPerBlock; ++v) store(scores[h] + v * kLanes, acc[h][v] * scale);
}

// Turns one head's scores into weights relative to the new maximum; returns what the sums so far must be scaled by.
inline float block_weights(float* scores, int valid, HeadState& state) {
  for (int j = valid; j < kKvBlockSize; ++j) scores[j] = -INFINITY;
  Vec top = load(scores);
  for (int v = 1; v < kVecsPerBlock; ++v) top = max(top, load(scores + v * kLanes));
  const float block_max = reduce_max(top);
  const float new_max = block_max > state.max ? block_max : state.max;
  Vec sum{};
  for (int v = 0; v < kVecsPerBlock; ++v) {
    const Vec weight = exp(load(scores + v * kLanes) - new_max);
    sum += weight;
    store(scores + v * kLanes, weight);
  }
  const float rescale = exp(splat(state.max - new_max))[0];
  state.sum = state.sum * rescale + reduce_add(sum);
  state.max = new_max;
  return rescale;
}

// One more block of keys, of which the first `valid` exist, into the running softmax of H heads.
template <int H, class T>
inline void absorb_block(const float* q, const T* k_block, const T* v_block, int64_t dim, int valid, float scale,
                         HeadState* states, float* acc) {
  float weights[H][kKvBlockSize], rescale[H];
  block_scores<H>(q, k_block, dim, scale, weights);
  for (int h = 0; h < H; ++h) rescale[h] = block_weights(weights[h], valid, states[h]);
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    Vec sum[H];
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) sum[h] = load(acc + h * dim + i) * rescale[h];
    for (int j = 0; j < valid; ++j) {
      const Vec value = load(v_block + j * dim + i);
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) sum[h] = fma(splat(weights[h][j]), value, sum[h]);
    }
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) store(acc + h * dim + i, sum[h]);
  }
  for (; i < dim; ++i)
    for (int h = 0; h < H; ++h) {
      float sum = acc[h * dim + i] * rescale[h];
      for (int j = 0; j < valid; ++j) sum += weights[h][j] * to_float(v_block[j * dim + i]);
      acc[h * dim + i] = sum;
    }
}

// As many heads at once as registers allow, then the rest.
template <int H = kMaxHeadsAtOnce, class T>
inline void absorb_heads(const float* q, const T* k_block, const T* v_block, int64_t dim, int valid, float scale,
                         int64_t heads, HeadState* states, float* acc) {
  for (; heads >= H; heads -= H, q += H * dim, states += H, acc += H * dim)
    absorb_block<H>(q, k_block, v_block, dim, valid, scale, states, acc);
  if constexpr (H > 1) absorb_heads<H - 1>(q, k_block, v_block, dim, valid, scale, heads, states, acc);
}

// One query row, one group of heads that share their keys and values.
template <class T>
void attend(const PagedAttentionParams& p, int64_t seq, int64_t row, int64_t group, float* scratch) {
  const int64_t dim = p.head_dim, heads = p.num_heads / p.num_kv_heads;
  const int64_t num_queries = p.query_start_loc[seq + 1] - p.query_start_loc[seq];
  const int64_t num_keys = p.context_lens[seq] - num_queries + (row - p.query_start_loc[seq]) + 1;
  const T* k_cache = static_cast<const T*>(p.k_cache.data);
  const T* v_cache = static_cast<const T*>(p.v_cache.data);
  const int64_t first_head = (row * p.num_heads + group * heads) * dim;
  float* acc = scratch;  // [heads, dim]
  HeadState* states = reinterpret_cast<HeadState*>(scratch + heads * dim);
  for (int64_t i = 0; i < heads * dim; ++i) acc[i] = 0.0f;
  for (int64_t h = 0; h < heads; ++h) states[h] = {-INFINITY, 0.0f};
  for (int64_t first = 0; first < num_keys; first += kKvBlockSize) {
    const int64_t block = p.block_table[seq * p.max_blocks_per_seq + first / kKvBlockSize];
    const int64_t offset = (block * p.num_kv_heads + group) * kKvBlockSize * dim;
    const int valid = static_cast<int>(num_keys - first < kKvBlockSize ? num_keys - first : kKvBlockSize);
    absorb_heads(p.q + first_head, k_cache + offset, v_cache + offset, dim, valid, p.scale, heads, states, acc);
  }
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < dim; ++i) {
      const float value = acc[h * dim + i] / states[h].sum;
      const int64_t to = first_head + h * dim + i;
      if (p.out.dtype == DType::kBFloat16) store_one(static_cast<uint16_t*>(p.out.data) + to, value);
      else store_one(static_cast<float*>(p.out.data) + to, value);
    }
}

void paged_attention(const PagedAttentionParams& p, ThreadPool& pool) {
  const int64_t heads_per_group = p.num_heads / p.num_kv_heads;
  const size_t scratch_bytes = heads_per_group * (p.head_dim * sizeof(float) + sizeof(HeadState));
  int64_t num_keys = 0;
  for (int64_t s = 0; s < p.num_seqs; ++s) num_keys += p.context_lens[s];
  // Two products with the keys of an average context.
  const int64_t work = p.num_seqs > 0 ? heads_per_group * p.head_dim * (num_keys / p.num_seqs) / 5 : 0;
  parallel_for(pool, int64_t{p.num_tokens} * p.num_kv_heads, grain_of(work),
               [&](int64_t begin, int64_t end, int thread) {
                 float* scratch = static_cast<float*>(pool.scratch(thread, scratch_bytes));
                 int64_t seq = 0;
                 for (int64_t item = begin; item < end; ++item) {
                   const int64_t row = item / p.num_kv_heads, group = item % p.num_kv_heads;
                   while (p.query_start_loc[seq + 1] <= row) ++seq;
                   if (p.k_cache.dtype == DType::kBFloat16) attend<uint16_t>(p, seq, row, group, scratch);
                   else attend<float>(p, seq, row, group, scratch);
                 }
               });
}

}  // namespace

SIMPLEAR_CPU_OP(paged_attention, PagedAttentionParams, kPagedAttentionFields, paged_attention);

}  // namespace simplear::SIMPLEAR_ISA
