// What attention kernels share: a context is cut into splits of 128 keys at fixed positions, each split is computed as
// if it were the whole context, and whoever finishes last merges the splits of a row in order (Milakov & Gimelshein
// 2018). Neither step looks at how many rows, sequences or blocks there are, so a row has the same bits alone and in a
// crowd.
#pragma once

#include "cuda/ptx.h"
#include "kernels/common/number.cuh"
#include "kernels/common/warp.cuh"
#include "kernels/common/weight_tiles.cuh"
#include "kernels/paged_attention/paged_attention.h"

namespace simplear::SIMPLEAR_GPU {

constexpr int kSplitKeys = 128, kSplitBlocks = kSplitKeys / kKvBlockSize;
constexpr int kAttentionWarps = 8, kAttentionThreads = 32 * kAttentionWarps;

// One block's share: a split of one KV head of a sequence, for every `num_parts`-th batch of query rows. Row r of a
// sequence is query r / heads_per_group, head r % heads_per_group of the group.
struct AttentionShare {
  int split, group, seq, part, num_parts;
  int heads_per_group, first_query, num_queries, context, num_splits;

  __device__ AttentionShare(const PagedAttentionParams& p, int num_parts)
      : split(blockIdx.x),
        group(blockIdx.y),
        seq(blockIdx.z / num_parts),
        part(blockIdx.z % num_parts),
        num_parts(num_parts),
        heads_per_group(p.num_heads / p.num_kv_heads),
        first_query(p.query_start_loc[seq]),
        num_queries(p.query_start_loc[seq + 1] - first_query),
        context(p.context_lens[seq]),
        num_splits(static_cast<int>(divide_up(context, kSplitKeys))) {}

  __device__ int num_rows() const { return num_queries * heads_per_group; }
  // Whether there is anything to do; the same for all splits below num_splits of a part.
  __device__ bool has_work(int rows_per_batch) const {
    return split < num_splits && part * rows_per_batch < num_rows();
  }
  // Keys that row r may see, from the first of the context on.
  __device__ int num_keys(int row) const { return context - num_queries + row / heads_per_group + 1; }
  // Row of q and out [N * H, E].
  __device__ int64_t row_of_output(const PagedAttentionParams& p, int row) const {
    return int64_t{first_query + row / heads_per_group} * p.num_heads + group * heads_per_group + row % heads_per_group;
  }
};

// Results of splits: for each row of q and each split a maximum, a sum, and head_dim weighted sums of values.
struct Partials {
  float* memory;
  int64_t splits_per_row;

  static size_t floats(const PagedAttentionParams& p, int64_t splits_per_row) {
    return static_cast<size_t>(int64_t{p.num_tokens} * p.num_heads * splits_per_row * (p.head_dim + 2));
  }
  __device__ float* at(const PagedAttentionParams& p, int64_t row, int split) const {
    return memory + (row * splits_per_row + split) * (p.head_dim + 2);
  }
};

__device__ inline float read_of_other_block(const float* at) {
#if defined(__CUDACC__)
  return __ldcg(at);
#else
  return *at;
#endif
}

// True in every thread of the block that comes last of `expected`, which then sees what the others have written. Leaves
// the counter at zero. `flag`: shared memory.
__device__ inline bool is_last_block(int32_t* counter, int expected, int32_t* flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const bool is_last = atomicAdd(counter, 1) == expected - 1;
    if (is_last) *counter = 0;
    *flag = is_last;
  }
  __syncthreads();
  const bool is_last = *flag != 0;
  if (is_last) __threadfence();
  return is_last;
}

__device__ inline void write_attended(const PagedAttentionParams& p, int64_t index, float value) {
  if (p.out.dtype == DType::kBFloat16) store(static_cast<uint16_t*>(p.out.data) + index, value);
  else store(static_cast<float*>(p.out.data) + index, value);
}

// One row, by one warp: merges its splits in order of position and writes it out. Maxima are to base 2. All that is
// read of the splits but their common maximum is independent of each other, so many reads are under way at once.
__device__ inline void merge_splits(const PagedAttentionParams& p, const Partials& partials, int64_t row,
                                    int num_splits) {
  const int lane = threadIdx.x % 32;
  float highest = -INFINITY;
  for (int split = lane; split < num_splits; split += 32)
    highest = fmaxf(highest, read_of_other_block(partials.at(p, row, split)));
  highest = warp_max(highest);
  for (int i = lane; i < p.head_dim; i += 64) {
    const int second = min(i + 32, p.head_dim - 1);
    float sum = 0.0f, values[2] = {};
#pragma unroll 8
    for (int split = 0; split < num_splits; ++split) {
      const float* at = partials.at(p, row, split);
      const float factor = exp2f(read_of_other_block(at) - highest);
      sum = fmaf(read_of_other_block(at + 1), factor, sum);
      values[0] = fmaf(read_of_other_block(at + 2 + i), factor, values[0]);
      values[1] = fmaf(read_of_other_block(at + 2 + second), factor, values[1]);
    }
    write_attended(p, row * p.head_dim + i, values[0] / sum);
    if (i + 32 < p.head_dim) write_attended(p, row * p.head_dim + second, values[1] / sum);
  }
}

}  // namespace simplear::SIMPLEAR_GPU
