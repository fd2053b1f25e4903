// Two kernels. The first computes logits 128 codes at a time and samples every chunk while its logits are in shared
// memory; the second has a block for each draw, which joins the chunks, after it has cut off what top-k and top-p
// exclude.
//
// A block takes the rows of whole draws, the conditional and the unconditional one side by side. Rows that no draw
// refers to have blocks of their own, which end at once when there are none.
#include "kernels/common/activations.cuh"
#include "kernels/common/sampling.cuh"
#include "kernels/common/threshold.cuh"
#include "kernels/head_sample/head_sample.h"

namespace simplear::SIMPLEAR_GPU {
namespace {

constexpr int kStages = 16, kColTiles = 2;
constexpr int kChunkGroups = kChunkCodes / (kTileRows * kColTiles);

template <class W, int kGroups>
class HeadProduct : public SkinnyProduct<W, kGroups, kColTiles, kStages> {
 public:
  using Base = SkinnyProduct<W, kGroups, kColTiles, kStages>;
  using Base::Base;
  __host__ __device__ static constexpr int64_t logit_bytes() { return int64_t{Base::kRows} * kChunkCodes * 4; }
  __host__ __device__ static constexpr int64_t shared_bytes(int64_t k) { return Base::shared_bytes(k) + logit_bytes(); }
};

__device__ inline bool is_filtered(const HeadSampleParams& p, int draw) {
  return p.top_k[draw] < p.num_codes || p.top_p[draw] < 1.0f;
}

// By one warp: whether some draw refers to the row.
__device__ inline bool is_drawn(const HeadSampleParams& p, int row) {
  bool found = false;
  for (int draw = threadIdx.x % 32; draw < p.num_draws; draw += 32)
    found |= p.cond_row[draw] == row || p.uncond_row[draw] == row;
  return __any_sync(0xffffffffu, found);
}

// z of four codes; outside of the codes it does not matter.
__device__ inline void guide(const HeadSampleParams& p, int draw, const float* cond, const float* uncond,
                             float (&z)[4]) {
  const bool is_guided = p.uncond_row[draw] >= 0;
  const float scale = p.guidance_scale[draw], temperature = p.temperature[draw];
  const float divisor = temperature > 0.0f ? temperature : 1.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) z[i] = (is_guided ? uncond[i] + scale * (cond[i] - uncond[i]) : cond[i]) / divisor;
}

// How chunks and rows are handed to blocks.
struct HeadGrid {
  int32_t num_chunks, chunks_per_block, num_draw_passes;
};

template <class W, int kGroups>
__global__ void __launch_bounds__(kProductThreads, 1)
    score_codes(HeadSampleParams p, HeadGrid grid, ChunkResult* results) {
  using Product = HeadProduct<W, kGroups>;
  constexpr int kRows = Product::kRows, kDraws = kRows / 2;
  allow_next_kernel();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_chunk = blockIdx.y * grid.chunks_per_block;
  const int num_chunks = min(grid.chunks_per_block, grid.num_chunks - first_chunk);
  const int pass = blockIdx.x;
  const bool is_for_draws = pass < grid.num_draw_passes;
  const int first_draw = pass * kDraws, num_draws = is_for_draws ? min(kDraws, p.num_draws - first_draw) : 0;
  const int first_row = (pass - grid.num_draw_passes) * kRows;  // of those that are scored
  if (!is_for_draws) {
    wait_for_previous_kernel();
    bool is_needed = false;
    for (int row = first_row; row < min(first_row + kRows, p.num_rows); ++row) is_needed |= !is_drawn(p, row);
    if (!is_needed) return;
  }

  char* const shared = dynamic_shared();
  float* const logits = reinterpret_cast<float*>(shared);  // [kRows][kChunkCodes]
  Product product(WeightTiles<W>(p.weight, divide_up(p.num_codes, kTileRows), p.hidden_size),
                  {first_chunk * kChunkGroups, num_chunks * kChunkGroups}, shared + Product::logit_bytes());

  if (is_for_draws) wait_for_previous_kernel();
  // Row of hidden behind local row r, or -1.
  const auto source_of = [&](int r) -> int64_t {
    if (!is_for_draws) {
      const int row = first_row + r;
      return row < p.num_rows && !is_drawn(p, row) ? p.rows[row] : -1;
    }
    if (r / 2 >= num_draws) return -1;
    const int row = r % 2 == 0 ? p.cond_row[first_draw + r / 2] : p.uncond_row[first_draw + r / 2];
    return row >= 0 ? p.rows[row] : -1;
  };
  load_activations<W>({{const_cast<float*>(p.hidden), DType::kFloat32}, p.norm_weight, p.eps, p.hidden_size}, kRows,
                      source_of, product.activations());
  __syncthreads();

  for (int chunk = first_chunk; chunk < first_chunk + num_chunks; ++chunk) {
    for (int group = 0; group < kChunkGroups; ++group) {
      product.compute(p.hidden_size);
      for (int i = threadIdx.x; i < kRows * Product::kOutputs; i += kProductThreads) {
        const int row = i / Product::kOutputs, output = i % Product::kOutputs;
        logits[row * kChunkCodes + group * Product::kOutputs + output] = product.sum(row, output);
      }
    }
    __syncthreads();
    const int first = chunk * kChunkCodes, code = first + 4 * lane;
    for (int i = warp; i < num_draws; i += kSlices) {
      const int draw = first_draw + i;
      const float* cond = logits + 2 * i * kChunkCodes + 4 * lane;
      float z[4];
      guide(p, draw, cond, cond + kChunkCodes, z);
      if (is_filtered(p, draw)) {
        for (int j = 0; j < 4; ++j)
          if (code + j < p.num_codes) p.guided[int64_t{draw} * p.num_codes + code + j] = z[j];
        continue;
      }
      const ChunkResult result =
          sample_chunk(z, first, p.num_codes, -INFINITY, p.temperature[draw] == 0.0f, p.seed[draw], p.position[draw]);
      if (lane == 0) results[int64_t{draw} * grid.num_chunks + chunk] = result;
    }
    if (!is_for_draws)
      for (int r = warp; r < min(kRows, p.num_rows - first_row); r += kSlices) {
        if (is_drawn(p, first_row + r)) continue;
        for (int j = lane; j < kChunkCodes; j += 32)
          if (first + j < p.num_codes)
            p.logits[int64_t{first_row + r} * p.num_codes + first + j] = logits[r * kChunkCodes + j];
      }
  }
}

constexpr int kFinishThreads = 512;

__global__ void __launch_bounds__(kFinishThreads, 1)
    finish_draws(HeadSampleParams p, int num_chunks, ChunkResult* results) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int draw = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  ChunkResult* const chunks = results + int64_t{draw} * num_chunks;
  const bool is_greedy = p.temperature[draw] == 0.0f;
  if (is_filtered(p, draw)) {
    KeyHistogram& histogram = *reinterpret_cast<KeyHistogram*>(dynamic_shared());
    const float* guided = p.guided + int64_t{draw} * p.num_codes;
    const float threshold = allowed_threshold(guided, p.num_codes, p.top_k[draw], p.top_p[draw], histogram);
    for (int chunk = warp; chunk < num_chunks; chunk += kFinishThreads / 32) {
      const int first = chunk * kChunkCodes, code = first + 4 * lane;
      float z[4];
      for (int j = 0; j < 4; ++j) z[j] = code + j < p.num_codes ? guided[code + j] : -INFINITY;
      const ChunkResult result =
          sample_chunk(z, first, p.num_codes, threshold, is_greedy, p.seed[draw], p.position[draw]);
      if (lane == 0) chunks[chunk] = result;
    }
    __syncthreads();
  }
  if (warp != 0) return;
  int32_t token;
  float log_prob;
  join_chunks(chunks, num_chunks, is_greedy, token, log_prob);
  if (lane != 0) return;
  p.token[draw] = token;
  p.log_prob[draw] = log_prob;
  p.last_code[p.slot[draw]] = max(token, 0);
}

template <class W, int kGroups>
void run(const HeadSampleParams& p, Launcher& launcher) {
  using Product = HeadProduct<W, kGroups>;
  const int32_t num_chunks = static_cast<int32_t>(divide_up(p.num_codes, kChunkCodes));
  ChunkResult* const results = launcher.workspace<ChunkResult>(static_cast<size_t>(p.num_draws) * num_chunks);
  const int64_t shared = Product::shared_bytes(p.hidden_size);
  const ProductBlocks blocks =
      divide_groups(num_chunks, launcher.num_multiprocessors, static_cast<int32_t>(launcher.max_shared_bytes / shared));
  const int32_t draw_passes = static_cast<int32_t>(divide_up(p.num_draws, Product::kRows / 2));
  const int32_t row_passes = static_cast<int32_t>(divide_up(p.num_rows, Product::kRows));
  // Passes over the same weights lie side by side, so that all but the first find them in the second-level cache.
  launch(launcher, "head_sample", score_codes<W, kGroups>,
         {dim3(draw_passes + row_passes, blocks.num_blocks), dim3(kProductThreads), static_cast<size_t>(shared)}, p,
         HeadGrid{num_chunks, blocks.groups_per_block, draw_passes}, results);
  if (p.num_draws > 0)
    launch(launcher, "head_sample", finish_draws, {dim3(p.num_draws), dim3(kFinishThreads), sizeof(KeyHistogram)}, p,
           num_chunks, results);
}

void head_sample(const HeadSampleParams& p, Launcher& launcher) {
  if (p.num_rows == 0) return;
  check_aligned({const_cast<float*>(p.hidden), DType::kFloat32}, "head_sample", "hidden");
  check_aligned(p.norm_weight, "head_sample", "norm_weight");
  with_weight_type<HeadProduct>(p.weight, "head_sample", max(2 * p.num_draws, p.num_rows), p.hidden_size, launcher,
                                [&]<class W, int kGroups>() { run<W, kGroups>(p, launcher); });
}

}  // namespace

SIMPLEAR_CUDA_OP(head_sample, HeadSampleParams, kHeadSampleFields, head_sample);

}  // namespace simplear::SIMPLEAR_GPU
