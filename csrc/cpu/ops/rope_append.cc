#include "kernels/rope_append/rope_append.h"

#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

inline float rotated(const float* head, const float* cos, const float* sin, int64_t half, int64_t i) {
  return i < half ? head[i] * cos[i] - head[i + half] * sin[i]
                  : head[i] * cos[i - half] + head[i - half] * sin[i - half];
}

template <class T>
void rope_append_token(const RopeAppendParams& p, int64_t n, T* k_cache, T* v_cache) {
  const int64_t dim = p.head_dim, half = dim / 2, heads = p.num_heads, groups = p.num_kv_heads;
  const float* q = p.qkv + n * (heads + 2 * groups) * dim;
  const float* k = q + heads * dim;
  const float* v = k + groups * dim;
  const float* cos = p.cos_sin + p.positions[n] * dim;
  const float* sin = cos + half;
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < dim; ++i) p.q[(n * heads + h) * dim + i] = rotated(q + h * dim, cos, sin, half, i);
  const int64_t block = p.slot_mapping[n] / kKvBlockSize, offset = p.slot_mapping[n] % kKvBlockSize;
  for (int64_t g = 0; g < groups; ++g) {
    T* k_block = k_cache + (block * groups + g) * dim * kKvBlockSize;
    T* v_row = v_cache + ((block * groups + g) * kKvBlockSize + offset) * dim;
    for (int64_t i = 0; i < dim; ++i) {
      store_one(k_block + i * kKvBlockSize + offset, rotated(k + g * dim, cos, sin, half, i));
      store_one(v_row + i, v[g * dim + i]);
    }
  }
}

void rope_append(const RopeAppendParams& p, ThreadPool& pool) {
  const int64_t width = int64_t{p.num_heads + 2 * p.num_kv_heads} * p.head_dim;
  parallel_for(pool, p.num_tokens, grain_of(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      if (p.k_cache.dtype == DType::kBFloat16)
        rope_append_token(p, n, static_cast<uint16_t*>(p.k_cache.data), static_cast<uint16_t*>(p.v_cache.data));
      else rope_append_token(p, n, static_cast<float*>(p.k_cache.data), static_cast<float*>(p.v_cache.data));
    }
  });
}

}  // namespace

SIMPLEAR_CPU_OP(rope_append, RopeAppendParams, kRopeAppendFields, rope_append);

}  // namespace simplear::SIMPLEAR_ISA
