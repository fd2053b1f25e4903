// Attention for any head size and type of cache: a warp takes one query row through a split, with ordinary
// multiply-adds. Where common head sizes are rounded to bfloat16 in the end, tensor cores do it, see
// tensor_core_attention.cuh.
#include "kernels/common/split_attention.cuh"
#include "kernels/common/warp.cuh"
#include "kernels/paged_attention/paged_attention.h"
#include "kernels/paged_attention/tensor_core_attention.cuh"

namespace simplear::SIMPLEAR_GPU {
namespace {

constexpr float kLog2E = 1.44269504f;

template <class T>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    attend_split(PagedAttentionParams p, Partials partials, int32_t* counters, int num_parts) {
  allow_next_kernel();
  wait_for_previous_kernel();
  constexpr bool kHasScales = sizeof(T) == 1;
  const AttentionShare share(p, num_parts);
  if (!share.has_work(kAttentionWarps)) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = p.head_dim;
  float* const weights = reinterpret_cast<float*>(dynamic_shared()) + warp * kSplitKeys;
  int32_t* const flag = reinterpret_cast<int32_t*>(dynamic_shared() + kAttentionWarps * kSplitKeys * sizeof(float));

  const int32_t* table = p.block_table + int64_t{share.seq} * p.max_blocks_per_seq + share.split * kSplitBlocks;
  // Index of a key's block of this KV head.
  const auto block_of = [&](int key) { return int64_t{table[key / kKvBlockSize]} * p.num_kv_heads + share.group; };

  for (int row = share.part * kAttentionWarps + warp; row < share.num_rows(); row += num_parts * kAttentionWarps) {
    const int count = min(share.num_keys(row) - share.split * kSplitKeys, kSplitKeys);
    if (count <= 0) continue;
    const int64_t out_row = share.row_of_output(p, row);
    const float* q = p.q + out_row * dim;

    float highest = -INFINITY;
    for (int key = lane; key < count; key += 32) {
      const int64_t block = block_of(key);
      const T* k = static_cast<const T*>(p.k_cache.data) + block * dim * kKvBlockSize + key % kKvBlockSize;
      float score = 0.0f;
      for (int d = 0; d < dim; ++d) score = fmaf(q[d], to_float(k[d * kKvBlockSize]), score);
      score *= p.scale * kLog2E;
      if constexpr (kHasScales) score *= p.k_scale[block * kKvBlockSize + key % kKvBlockSize];
      weights[key] = score;
      highest = fmaxf(highest, score);
    }
    highest = warp_max(highest);
    float sum = 0.0f;
    for (int key = lane; key < count; key += 32) {
      float weight = exp2f(weights[key] - highest);
      sum += weight;
      if constexpr (kHasScales) weight *= p.v_scale[block_of(key) * kKvBlockSize + key % kKvBlockSize];
      weights[key] = weight;
    }
    sum = warp_sum(sum);
    __syncwarp();

    const bool is_only_split = share.num_keys(row) <= kSplitKeys;
    float* const to = partials.at(p, out_row, share.split);
    for (int i = lane; i < dim; i += 32) {
      float value = 0.0f;
      for (int key = 0; key < count; ++key) {
        const T* v = static_cast<const T*>(p.v_cache.data) + (block_of(key) * kKvBlockSize + key % kKvBlockSize) * dim;
        value = fmaf(weights[key], to_float(v[i]), value);
      }
      if (is_only_split) write_attended(p, out_row * dim + i, value / sum);
      else to[2 + i] = value;
    }
    if (!is_only_split && lane == 0) {
      to[0] = highest;
      to[1] = sum;
    }
    __syncwarp();
  }

  if (share.num_splits == 1) return;
  int32_t* const counter = counters + (int64_t{share.seq} * p.num_kv_heads + share.group) * num_parts + share.part;
  if (!is_last_block(counter, share.num_splits, flag)) return;
  for (int row = share.part * kAttentionWarps + warp; row < share.num_rows(); row += num_parts * kAttentionWarps) {
    const int splits = static_cast<int>(divide_up(share.num_keys(row), kSplitKeys));
    if (splits > 1) merge_splits(p, partials, share.row_of_output(p, row), splits);
  }
}

template <int kDim, class T>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    attend_on_tensor_cores(PagedAttentionParams p, Partials partials, int32_t* counters, int num_parts) {
  allow_next_kernel();
  wait_for_previous_kernel();
  TensorCoreAttention<kDim, T>::attend(p, partials, counters, num_parts);
}

bool has_tensor_cores(const PagedAttentionParams& p) {
  return p.k_cache.dtype != DType::kFloat32 && p.out.dtype == DType::kBFloat16 &&
         (p.head_dim == 64 || p.head_dim == 128);
}

// run(kernel of the cache's type, bytes of shared memory)
template <class T, class Run>
void choose_kernel(const PagedAttentionParams& p, const Run& run) {
  if constexpr (sizeof(T) < sizeof(float)) {
    using Narrow = TensorCoreAttention<64, T>;
    using Wide = TensorCoreAttention<128, T>;
    if (has_tensor_cores(p))
      return p.head_dim == 64 ? run(attend_on_tensor_cores<64, T>, sizeof(typename Narrow::Shared))
                              : run(attend_on_tensor_cores<128, T>, sizeof(typename Wide::Shared));
  }
  run(attend_split<T>, kAttentionWarps * kSplitKeys * sizeof(float) + 16);
}

void paged_attention(const PagedAttentionParams& p, Launcher& launcher) {
  if (p.num_tokens == 0 || p.num_seqs == 0) return;
  const DType cache = p.k_cache.dtype;
  const int batch = has_tensor_cores(p) ? kTensorCoreRows : kAttentionWarps;
  const int64_t rows_per_seq = divide_up(int64_t{p.num_tokens} * (p.num_heads / p.num_kv_heads), p.num_seqs);
  const int num_parts = static_cast<int>(std::clamp<int64_t>(divide_up(rows_per_seq, batch), 1, 32));
  const int64_t max_splits = divide_up(p.max_blocks_per_seq, kSplitBlocks);
  const Partials partials{launcher.workspace<float>(Partials::floats(p, max_splits)), max_splits};
  int32_t* const counters = launcher.counters(static_cast<size_t>(p.num_seqs) * p.num_kv_heads * num_parts);
  const auto run = [&](auto kernel, size_t shared_bytes) {
    const LaunchShape shape{dim3(max_splits, p.num_kv_heads, p.num_seqs * num_parts), dim3(kAttentionThreads),
                            shared_bytes};
    launch(launcher, "paged_attention", kernel, shape, p, partials, counters, num_parts);
  };
  if (cache == DType::kInt8) choose_kernel<int8_t>(p, run);
  else if (cache == DType::kFloat8E4M3) choose_kernel<Float8>(p, run);
  else if (cache == DType::kBFloat16) choose_kernel<uint16_t>(p, run);
  else choose_kernel<float>(p, run);
}

}  // namespace

SIMPLEAR_CUDA_OP(paged_attention, PagedAttentionParams, kPagedAttentionFields, paged_attention);

}  // namespace simplear::SIMPLEAR_GPU
