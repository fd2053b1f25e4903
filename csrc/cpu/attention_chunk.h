// A chunk of keys and values, and what turns scores into weights.
#pragma once

#include <math.h>

#include "cpu/attention_schedule.h"
#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {

// The blocks of a chunk, and what is read after it.
template <class T>
struct Chunk {
  static constexpr bool kHasScales = sizeof(T) == 1;
  int num_keys, num_blocks;
  const T *keys[kChunkBlocks], *values[kChunkBlocks], *next_keys[kChunkBlocks], *next_values[kChunkBlocks];
  const float *key_scales[kChunkBlocks], *value_scales[kChunkBlocks];
};

// Of so many keys of a row; none or fewer where it ends before the chunk.
inline int keys_in_chunk(int64_t num_keys, int64_t chunk) {
  const int64_t left = num_keys - chunk * kChunkKeys;
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
  Chunk<T> c{};
  c.num_keys = keys_in_chunk(item.num_keys, chunk);
  c.num_blocks = num_blocks_of(c.num_keys);
  const int num_next = num_blocks_of(keys_in_chunk(next.num_keys, next_chunk));
  for (int b = 0; b < c.num_blocks; ++b) {
    const int64_t block = block_of(item, chunk * kChunkBlocks + b);
    c.keys[b] = keys + block * block_elements;
    c.values[b] = values + block * block_elements;
    const int64_t after = b < num_next ? block_of(next, next_chunk * kChunkBlocks + b) : block;
    c.next_keys[b] = keys + after * block_elements;
    c.next_values[b] = values + after * block_elements;
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

constexpr int32_t kIota[kKvBlockSize] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

}  // namespace simplear::SIMPLEAR_ISA
