#include "kernels/rope_append/rope_append.h"

#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

void rotate(const float* head, const float* cos, const float* sin, int64_t half, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec a = load(head + i), b = load(head + half + i), c = load(cos + i), s = load(sin + i);
    store(out + i, a * c - b * s);
    store(out + half + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float a = head[i], b = head[half + i];
    out[i] = a * cos[i] - b * sin[i];
    out[half + i] = b * cos[i] + a * sin[i];
  }
}

template <class T>
void round_to(const float* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; ++i) store_one(to + i, from[i]);
}

// scratch: a head in float32, then as T.
template <class T>
void rope_append_token(const RopeAppendParams& p, int64_t n, float* scratch) {
  const int64_t dim = p.head_dim, half = dim / 2, heads = p.num_heads, groups = p.num_kv_heads;
  const float* q = p.qkv + n * (heads + 2 * groups) * dim;
  const float* k = q + heads * dim;
  const float* v = k + groups * dim;
  const float* cos = p.cos_sin + p.positions[n] * dim;
  const float* sin = cos + half;
  for (int64_t h = 0; h < heads; ++h) rotate(q + h * dim, cos, sin, half, p.q + (n * heads + h) * dim);
  const int64_t block = p.slot_mapping[n] / kKvBlockSize, offset = p.slot_mapping[n] % kKvBlockSize;
  for (int64_t g = 0; g < groups; ++g) {
    T* to_k = static_cast<T*>(p.k_cache.data) + (block * groups + g) * dim * kKvBlockSize + offset;
    T* to_v = static_cast<T*>(p.v_cache.data) + ((block * groups + g) * kKvBlockSize + offset) * dim;
    T* rounded = reinterpret_cast<T*>(scratch + dim);
    rotate(k + g * dim, cos, sin, half, scratch);
    round_to(scratch, dim, rounded);
    for (int64_t i = 0; i < dim; ++i) to_k[i * kKvBlockSize] = rounded[i];
    round_to(v + g * dim, dim, to_v);
  }
}

void rope_append(const RopeAppendParams& p, ThreadPool& pool) {
  const int64_t width = int64_t{p.num_heads + 2 * p.num_kv_heads} * p.head_dim;
  parallel_for(pool, p.num_tokens, grain_of(width), [&](int64_t begin, int64_t end, int thread) {
    float* scratch = static_cast<float*>(pool.scratch(thread, 2 * p.head_dim * sizeof(float)));
    for (int64_t n = begin; n < end; ++n) {
      if (p.k_cache.dtype == DType::kBFloat16) rope_append_token<uint16_t>(p, n, scratch);
      else rope_append_token<float>(p, n, scratch);
    }
  });
}

}  // namespace

SIMPLEAR_CPU_OP(rope_append, RopeAppendParams, kRopeAppendFields, rope_append);

}  // namespace simplear::SIMPLEAR_ISA
