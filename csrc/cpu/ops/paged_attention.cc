#include "kernels/paged_attention/paged_attention.h"

#include <math.h>

#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

constexpr int kVecsPerBlock = kKvBlockSize / kLanes;

// What one query row and one group of heads needs while it walks over the keys.
struct HeadState {
  float max, sum;
};

// scores[j] = scale * q . k[j] for the 16 keys of a block; d ascending in every lane.
template <class T>
inline void block_scores(const float* q, const T* k_block, int64_t dim, float scale, float* scores) {
  Vec acc[kVecsPerBlock] = {};
  for (int64_t d = 0; d < dim; ++d)
    for (int v = 0; v < kVecsPerBlock; ++v)
      acc[v] = fma(splat(q[d]), load(k_block + d * kKvBlockSize + v * kLanes), acc[v]);
  for (int v = 0; v < kVecsPerBlock; ++v) store(scores + v * kLanes, acc[v] * scale);
}

// One more block of keys, of which the first `valid` exist, into the running softmax of one head.
template <class T>
inline void absorb_block(const float* q, const T* k_block, const T* v_block, int64_t dim, int valid, float scale,
                         HeadState& state, float* acc) {
  float scores[kKvBlockSize];
  block_scores(q, k_block, dim, scale, scores);
  for (int j = valid; j < kKvBlockSize; ++j) scores[j] = -INFINITY;
  Vec top = load(scores);
  for (int v = 1; v < kVecsPerBlock; ++v) top = max(top, load(scores + v * kLanes));
  const float block_max = reduce_max(top);
  const float new_max = block_max > state.max ? block_max : state.max;
  Vec weights_sum{};
  for (int v = 0; v < kVecsPerBlock; ++v) {
    const Vec weight = exp(load(scores + v * kLanes) - new_max);
    weights_sum += weight;
    store(scores + v * kLanes, weight);
  }
  const float rescale = exp(splat(state.max - new_max))[0];
  state.sum = state.sum * rescale + reduce_add(weights_sum);
  state.max = new_max;
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    Vec sum = load(acc + i) * rescale;
    for (int j = 0; j < valid; ++j) sum = fma(splat(scores[j]), load(v_block + j * dim + i), sum);
    store(acc + i, sum);
  }
  for (; i < dim; ++i) {
    float sum = acc[i] * rescale;
    for (int j = 0; j < valid; ++j) sum += scores[j] * to_float(v_block[j * dim + i]);
    acc[i] = sum;
  }
}

template <class T>
void attend(const PagedAttentionParams& p, int64_t seq, int64_t row, int64_t group, float* scratch) {
  const int64_t dim = p.head_dim, heads_per_group = p.num_heads / p.num_kv_heads;
  const int64_t num_queries = p.query_start_loc[seq + 1] - p.query_start_loc[seq];
  const int64_t num_keys = p.context_lens[seq] - num_queries + (row - p.query_start_loc[seq]) + 1;
  const T* k_cache = static_cast<const T*>(p.k_cache.data);
  const T* v_cache = static_cast<const T*>(p.v_cache.data);
  float* acc = scratch;  // [heads_per_group, dim]
  HeadState* states = reinterpret_cast<HeadState*>(scratch + heads_per_group * dim);
  for (int64_t i = 0; i < heads_per_group * dim; ++i) acc[i] = 0.0f;
  for (int64_t h = 0; h < heads_per_group; ++h) states[h] = {-INFINITY, 0.0f};
  const float* q = p.q + (row * p.num_heads + group * heads_per_group) * dim;
  for (int64_t first = 0; first < num_keys; first += kKvBlockSize) {
    const int64_t block = p.block_table[seq * p.max_blocks_per_seq + first / kKvBlockSize];
    const int64_t offset = (block * p.num_kv_heads + group) * kKvBlockSize * dim;
    const int valid = static_cast<int>(num_keys - first < kKvBlockSize ? num_keys - first : kKvBlockSize);
    for (int64_t h = 0; h < heads_per_group; ++h)
      absorb_block(q + h * dim, k_cache + offset, v_cache + offset, dim, valid, p.scale, states[h], acc + h * dim);
  }
  for (int64_t h = 0; h < heads_per_group; ++h) {
    const int64_t to = (row * p.num_heads + group * heads_per_group + h) * dim;
    for (int64_t i = 0; i < dim; ++i) {
      const float value = acc[h * dim + i] / states[h].sum;
      if (p.out.dtype == DType::kBFloat16) store_one(static_cast<uint16_t*>(p.out.data) + to + i, value);
      else store_one(static_cast<float*>(p.out.data) + to + i, value);
    }
  }
}

void paged_attention(const PagedAttentionParams& p, ThreadPool& pool) {
  const int64_t heads_per_group = p.num_heads / p.num_kv_heads;
  const size_t scratch_bytes = heads_per_group * (p.head_dim * sizeof(float) + sizeof(HeadState));
  parallel_for(pool, int64_t{p.num_tokens} * p.num_kv_heads, [&](int64_t begin, int64_t end, int thread) {
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
