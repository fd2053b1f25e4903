// Attention over a cache of bfloat16, int8 or float8 numbers on tensor cores: 16 query rows (queries x heads of a
// group) against a split of 128 keys.
//
// A block copies keys and values of the split to shared memory once and takes all its rows through them. Scores are
// shared out by keys, a cache block of 16 to each of 8 warps; the weighted sums by columns of the values, so that
// nothing but maxima and sums of rows crosses warps. The cache lies as mma.m16n8k16 wants it after one transposing
// ldmatrix: a key block is [head_dim, 16], a value block [16, head_dim].
//
// Queries and weights are float32; each is taken as the sum of two bfloat16 numbers, which costs a second product and
// keeps some 16 bits. At decode the products are a small part of what reading keys and values takes.
//
// Codes of one byte are bfloat16 numbers, too, and become so on their way to shared memory. A key's scale goes to its
// scores, a value's to its weights.
#pragma once

#include <type_traits>

#include "kernels/common/split_attention.cuh"

namespace simplear::SIMPLEAR_GPU {

constexpr int kTensorCoreRows = 16;

template <int kDim, class T>
struct TensorCoreAttention {
  static constexpr int kRows = kTensorCoreRows;
  static constexpr bool kHasScales = sizeof(T) == 1;
  static constexpr int kSteps = kDim / 16;                     // products along a head
  static constexpr int kTiles = kDim / (8 * kAttentionWarps);  // tiles of 8 columns of the values for each warp
  static constexpr int kValueStride = kDim + 8;                // rows of 16-byte pieces that meet different banks
  static constexpr int kWeightStride = kSplitKeys + 8;         // likewise
  static_assert(kSplitBlocks == kAttentionWarps && kTiles >= 1);

  struct Shared {
    uint16_t keys[kSplitBlocks][kDim][kKvBlockSize];
    uint16_t values[kSplitKeys][kValueStride];
    uint16_t weights[2][kRows][kWeightStride];  // high and low parts
    float maxima[kAttentionWarps][kRows], sums[kAttentionWarps][kRows];
    float key_scales[kSplitKeys], value_scales[kSplitKeys];  // where there are any
    float flaws[kSplitKeys];                                 // of isolate_flaws()
    int32_t has_flaws, flag;
  };

  // high + low, each in bfloat16, of two numbers.
  __device__ static void split(float x, float y, uint32_t& high, uint32_t& low) {
    const uint16_t high_x = to_bfloat16(x), high_y = to_bfloat16(y);
    high = high_x | uint32_t{high_y} << 16;
    low = to_bfloat16(x - to_float(high_x)) | uint32_t{to_bfloat16(y - to_float(high_y))} << 16;
  }

  // Sends for the keys and values of the split: keys are one group of copies, values the next. Where they have
  // to be widened they are there on return, for those who meet this thread.
  __device__ static void fetch(const PagedAttentionParams& p, const AttentionShare& share, int num_keys, Shared& s) {
    const int32_t* table = p.block_table + int64_t{share.seq} * p.max_blocks_per_seq + share.split * kSplitBlocks;
    // Index of cache block i of this KV head.
    const auto block_of = [&](int i) { return int64_t{table[i]} * p.num_kv_heads + share.group; };
    if constexpr (kHasScales) fetch_codes(p, block_of, num_keys, s);
    else fetch_numbers(p, block_of, num_keys, s);
    // A weight of zero times what the cache holds behind the context, which may be anything, has to be zero.
    for (int i = num_keys * kDim + threadIdx.x; i < kSplitKeys * kDim; i += kAttentionThreads)
      s.values[i / kDim][i % kDim] = 0;
  }

  template <class BlockOf>
  __device__ static void fetch_numbers(const PagedAttentionParams& p, const BlockOf& block_of, int num_keys,
                                       Shared& s) {
    const int num_blocks = static_cast<int>(divide_up(num_keys, kKvBlockSize));
    constexpr int kPieces = kDim * kKvBlockSize / 8;  // of 16 bytes in a cache block
    const auto at = [&](int i) { return block_of(i / kPieces) * (kDim * kKvBlockSize) + i % kPieces * 8; };
    const uint16_t* keys = static_cast<const uint16_t*>(p.k_cache.data);
    for (int i = threadIdx.x; i < num_blocks * kPieces; i += kAttentionThreads)
      copy_async_16(&s.keys[0][0][0] + i * 8, keys + at(i));
    commit_async_copies();
    const uint16_t* values = static_cast<const uint16_t*>(p.v_cache.data);
    for (int i = threadIdx.x; i < num_blocks * kPieces; i += kAttentionThreads) {
      const int key = i / (kDim / 8), column = i % (kDim / 8) * 8;
      if (key < num_keys) copy_async_16(&s.values[key][column], values + at(i));
    }
    commit_async_copies();
  }

  template <class BlockOf>
  __device__ static void fetch_codes(const PagedAttentionParams& p, const BlockOf& block_of, int num_keys, Shared& s) {
    const int num_blocks = static_cast<int>(divide_up(num_keys, kKvBlockSize));
    constexpr int kPieces = kDim * kKvBlockSize / 16;  // of 16 bytes in a cache block
    constexpr int kTurns = kSplitBlocks * kPieces / kAttentionThreads;
    const auto at = [&](int i) { return block_of(i / kPieces) * (kDim * kKvBlockSize) + i % kPieces * 16; };
    const T* keys = static_cast<const T*>(p.k_cache.data);
    const T* values = static_cast<const T*>(p.v_cache.data);
    uint4 codes[2][kTurns];  // all under way before the first is looked at
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int i = turn * kAttentionThreads + threadIdx.x;
      if (i >= num_blocks * kPieces) continue;
      codes[0][turn] = *reinterpret_cast<const uint4*>(keys + at(i));
      codes[1][turn] = *reinterpret_cast<const uint4*>(values + at(i));
    }
    for (int key = threadIdx.x; key < num_keys; key += kAttentionThreads) {
      const int64_t token = block_of(key / kKvBlockSize) * kKvBlockSize + key % kKvBlockSize;
      s.key_scales[key] = p.k_scale[token];
      s.value_scales[key] = p.v_scale[token];
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int i = turn * kAttentionThreads + threadIdx.x;
      if (i >= num_blocks * kPieces) continue;
      write_codes(&s.keys[0][0][0] + i * 16, codes[0][turn]);
      const int key = i / (kDim / 16), column = i % (kDim / 16) * 16;
      if (key < num_keys) write_codes(&s.values[key][column], codes[1][turn]);
    }
  }

  // Sixteen codes as bfloat16.
  __device__ static void write_codes(uint16_t* to, const uint4& codes) {
    uint4 low, high;
    widen(codes.x, low.x, low.y);
    widen(codes.y, low.z, low.w);
    widen(codes.z, high.x, high.y);
    widen(codes.w, high.z, high.w);
    reinterpret_cast<uint4*>(to)[0] = low;
    reinterpret_cast<uint4*>(to)[1] = high;
  }

  __device__ static void widen(uint32_t word, uint32_t& first, uint32_t& second) {
    uint32_t even, odd;
    if constexpr (std::is_same_v<T, Float8>) widen_float8(word, even, odd);
    else widen_int8(word, even, odd);
    first = (even & 0xffffu) | odd << 16;
    second = even >> 16 | (odd & 0xffff0000u);
  }

  // Values that not every row of the block sees, keys [begin, num_keys): a weight of zero times one that is no number
  // would spoil rows that do not. Such a value becomes zero, and the NaN in `flaws` goes to the sums of those who do.
  __device__ static void isolate_flaws(int begin, int num_keys, Shared& s) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int key = begin + warp; key < num_keys; key += kAttentionWarps) {
      bool is_flawed = false;
      for (int d = lane; d < kDim; d += 32) is_flawed |= (s.values[key][d] & 0x7f80) == 0x7f80;
      is_flawed = __any_sync(0xffffffffu, is_flawed);
      if (lane == 0) s.flaws[key] = is_flawed ? NAN : 0.0f;
      if (!is_flawed) continue;
      for (int d = lane; d < kDim; d += 32) s.values[key][d] = 0;
      if (lane == 0) s.has_flaws = 1;
    }
  }

  __device__ static void attend(const PagedAttentionParams& p, const Partials& partials, int32_t* counters,
                                int num_parts) {
    const AttentionShare share(p, num_parts);
    if (!share.has_work(kRows)) return;
    Shared& s = *reinterpret_cast<Shared*>(dynamic_shared());
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int first_key = share.split * kSplitKeys, num_keys = min(share.context - first_key, kSplitKeys);
    if (threadIdx.x == 0) s.has_flaws = 0;
    fetch(p, share, num_keys, s);
    // Keys that all rows see come first; where each sequence brings one query, there are no others.
    const int first_unshared = max(share.num_keys(share.part * kRows) - first_key, 0);

    for (int first = share.part * kRows; first < share.num_rows(); first += num_parts * kRows) {
      // This thread's two rows of the batch; rows behind the last take the last one's place and write nothing.
      int row[2], count[2];
      int64_t out_row[2];
      for (int i = 0; i < 2; ++i) {
        row[i] = min(first + g + 8 * i, share.num_rows() - 1);
        count[i] = share.num_keys(row[i]) - first_key;
        out_row[i] = share.row_of_output(p, row[i]);
      }

      uint32_t high[kSteps][4], low[kSteps][4];
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* q = p.q + out_row[i % 2] * kDim + 16 * step + 8 * (i / 2) + 2 * t;
          const float2 pair = *reinterpret_cast<const float2*>(q);
          split(pair.x, pair.y, high[step][i], low[step][i]);
        }
      if (first == share.part * kRows) {  // the keys arrive while the first queries do
        wait_for_async_copies<1>();
        __syncthreads();
      }

      float scores[2][4] = {};  // tiles of 8 keys; as c of multiply_add_bf16
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t keys[4];
        load_transposed(keys, &s.keys[warp][16 * step + lane % 16][lane / 16 * 8]);
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          const uint32_t (&h)[4] = high[step], (&l)[4] = low[step];
          multiply_add_bf16(scores[tile], h[0], h[1], h[2], h[3], keys[2 * tile], keys[2 * tile + 1]);
          multiply_add_bf16(scores[tile], l[0], l[1], l[2], l[3], keys[2 * tile], keys[2 * tile + 1]);
        }
      }

      const float scale = p.scale * 1.44269504f;  // scores to base 2
      float highest[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int tile = 0; tile < 2; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = warp * kKvBlockSize + 8 * tile + 2 * t + i % 2;
          if constexpr (kHasScales) scores[tile][i] *= s.key_scales[key];
          scores[tile][i] = key < count[i / 2] ? scores[tile][i] * scale : -INFINITY;
          highest[i / 2] = fmaxf(highest[i / 2], scores[tile][i]);
        }
      for (int i = 0; i < 2; ++i) {
        highest[i] = fmaxf(highest[i], __shfl_xor_sync(0xffffffffu, highest[i], 1));
        highest[i] = fmaxf(highest[i], __shfl_xor_sync(0xffffffffu, highest[i], 2));
        if (t == 0) s.maxima[warp][g + 8 * i] = highest[i];
      }
      __syncthreads();

      float sum[2] = {};
      for (int i = 0; i < 2; ++i) {
        highest[i] = s.maxima[0][g + 8 * i];
        for (int w = 1; w < kAttentionWarps; ++w) highest[i] = fmaxf(highest[i], s.maxima[w][g + 8 * i]);
      }
#pragma unroll
      for (int tile = 0; tile < 2; ++tile)
        for (int i = 0; i < 2; ++i) {
          // A row without keys in this split has weights of zero, and nobody looks at what comes of it.
          const float top = count[i] > 0 ? highest[i] : 0.0f;
          const int key = warp * kKvBlockSize + 8 * tile + 2 * t;
          float a = exp2f(scores[tile][2 * i] - top), b = exp2f(scores[tile][2 * i + 1] - top);
          sum[i] += a + b;
          if constexpr (kHasScales) {  // behind the row's last key a scale may be anything
            a = key < count[i] ? a * s.value_scales[key] : 0.0f;
            b = key + 1 < count[i] ? b * s.value_scales[key + 1] : 0.0f;
          }
          uint32_t high, low;
          split(a, b, high, low);
          *reinterpret_cast<uint32_t*>(&s.weights[0][g + 8 * i][key]) = high;
          *reinterpret_cast<uint32_t*>(&s.weights[1][g + 8 * i][key]) = low;
        }
      for (int i = 0; i < 2; ++i) {
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
        if (t == 0) s.sums[warp][g + 8 * i] = sum[i];
      }
      wait_for_async_copies<0>();
      __syncthreads();
      if (first == share.part * kRows && first_unshared < num_keys) {
        isolate_flaws(first_unshared, num_keys, s);
        __syncthreads();
      }

      for (int i = 0; i < 2; ++i) {
        sum[i] = s.sums[0][g + 8 * i];
        for (int w = 1; w < kAttentionWarps; ++w) sum[i] += s.sums[w][g + 8 * i];
        if (s.has_flaws)
          for (int key = first_unshared; key < min(count[i], num_keys); ++key) sum[i] += s.flaws[key];
      }
      float attended[kTiles][4] = {};
#pragma unroll
      for (int pair = 0; pair < kSplitBlocks / 2; ++pair) {  // of blocks of 16 keys
        uint32_t weights[2][2][4];                           // [high, low][block]
#pragma unroll
        for (int part = 0; part < 2; ++part)
#pragma unroll
          for (int i = 0; i < 8; ++i)
            weights[part][i / 4][i % 4] = *reinterpret_cast<const uint32_t*>(
                &s.weights[part][g + 8 * (i % 2)][32 * pair + 16 * (i / 4) + 8 * (i % 4 / 2) + 2 * t]);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          uint32_t values[4];
          load_transposed(values, &s.values[32 * pair + lane][(tile * kAttentionWarps + warp) * 8]);
#pragma unroll
          for (int block = 0; block < 2; ++block)
#pragma unroll
            for (int part = 0; part < 2; ++part) {
              const uint32_t (&w)[4] = weights[part][block];
              multiply_add_bf16(attended[tile], w[0], w[1], w[2], w[3], values[2 * block], values[2 * block + 1]);
            }
        }
      }

      for (int i = 0; i < 2; ++i) {
        if (first + g + 8 * i >= share.num_rows() || count[i] <= 0) continue;
        const bool is_only_split = share.num_keys(row[i]) <= kSplitKeys;
        float* const to = partials.at(p, out_row[i], share.split);
        for (int tile = 0; tile < kTiles; ++tile)
          for (int j = 0; j < 2; ++j) {
            const int column = (tile * kAttentionWarps + warp) * 8 + 2 * t + j;
            const float value = attended[tile][2 * i + j];
            if (is_only_split) write_attended(p, out_row[i] * kDim + column, value / sum[i]);
            else to[2 + column] = value;
          }
        if (!is_only_split && warp == 0 && t == 0) {
          to[0] = highest[i];
          to[1] = sum[i];
        }
      }
    }

    if (share.num_splits == 1) return;
    int32_t* const counter = counters + (int64_t{share.seq} * p.num_kv_heads + share.group) * num_parts + share.part;
    if (!is_last_block(counter, share.num_splits, &s.flag)) return;
    for (int first = share.part * kRows; first < share.num_rows(); first += num_parts * kRows)
      for (int row = first + warp; row < min(first + kRows, share.num_rows()); row += kAttentionWarps) {
        const int splits = static_cast<int>(divide_up(share.num_keys(row), kSplitKeys));
        if (splits > 1) merge_splits(p, partials, share.row_of_output(p, row), splits);
      }
  }
};

}  // namespace simplear::SIMPLEAR_GPU
