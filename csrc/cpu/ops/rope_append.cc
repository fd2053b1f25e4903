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
void write_rounded(const float* from, int64_t count, T* to, float*) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; ++i) store_one(to + i, from[i]);
}

// Zeros follow `from` up to a whole vector.
void write_rounded(const float* from, int64_t count, int8_t* to, float* scale) {
  Vec top{}, flaws{};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec x = load(from + i);
    top = max(top, x < 0 ? -x : x);
    flaws += x * 0.0f;  // NaN where x is not finite; a maximum may forget a NaN
  }
  *scale = reduce_max(top) / 127.0f + reduce_add(flaws);
  const Vec divisor = splat(*scale > 0 ? *scale : 1.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec code = max(min(load(from + i) / divisor, splat(127.0f)), splat(-127.0f));
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    const VecB codes = __builtin_convertvector(reinterpret_cast<VecI>(code + 12582912.0f), VecB);
    memcpy(to + i, &codes, count - i < kLanes ? count - i : kLanes);
  }
}

// scratch: a head in float32 and as T, each padded to whole vectors.
template <class T>
void rope_append_token(const RopeAppendParams& p, int64_t n, float* scratch) {
  const int64_t dim = p.head_dim, half = dim / 2, heads = p.num_heads, groups = p.num_kv_heads;
  const float* q = p.qkv + n * (heads + 2 * groups) * dim;
  const float* k = q + heads * dim;
  const float* v = k + groups * dim;
  const float* cos = p.cos_sin + p.positions[n] * dim;
  const float* sin = cos + half;
  for (int64_t h = 0; h < heads; ++h) rotate(q + h * dim, cos, sin, half, p.q + (n * heads + h) * dim);
  if (p.slot_mapping[n] < 0) return;
  const int64_t block = p.slot_mapping[n] / kKvBlockSize, offset = p.slot_mapping[n] % kKvBlockSize;
  const int64_t padded = (dim + kLanes - 1) / kLanes * kLanes;
  T* rounded = reinterpret_cast<T*>(scratch + padded);
  for (int64_t i = dim; i < padded; ++i) scratch[i] = 0.0f;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t token = (block * groups + g) * kKvBlockSize + offset;  // [B, G, 16]
    T* to_k = static_cast<T*>(p.k_cache.data) + (block * groups + g) * dim * kKvBlockSize + offset;
    rotate(k + g * dim, cos, sin, half, scratch);
    write_rounded(scratch, dim, rounded, p.k_scale ? p.k_scale + token : nullptr);
    for (int64_t i = 0; i < dim; ++i) to_k[i * kKvBlockSize] = rounded[i];
    memcpy(scratch, v + g * dim, dim * sizeof(float));
    write_rounded(scratch, dim, static_cast<T*>(p.v_cache.data) + token * dim, p.v_scale ? p.v_scale + token : nullptr);
  }
}

void rope_append(const RopeAppendParams& p, ThreadPool& pool) {
  const int64_t width = int64_t{p.num_heads + 2 * p.num_kv_heads} * p.head_dim;
  // Strided stores and lines that another core wrote: the work of some four simple elements each.
  parallel_for(pool, p.num_tokens, grain_of(4 * width), [&](int64_t begin, int64_t end, int thread) {
    float* scratch = static_cast<float*>(pool.scratch(thread, 2 * (p.head_dim + kLanes) * sizeof(float)));
    for (int64_t n = begin; n < end; ++n) {
      if (p.k_cache.dtype == DType::kInt8) rope_append_token<int8_t>(p, n, scratch);
      else if (p.k_cache.dtype == DType::kBFloat16) rope_append_token<uint16_t>(p, n, scratch);
      else rope_append_token<float>(p, n, scratch);
    }
  });
}

}  // namespace

SIMPLEAR_CPU_OP(rope_append, RopeAppendParams, kRopeAppendFields, rope_append);

}  // namespace simplear::SIMPLEAR_ISA
