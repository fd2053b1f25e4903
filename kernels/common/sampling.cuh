// Guided sampling over 128 codes at a time, by one warp; kernels/head_sample/head_sample.h has the rules.
//
// The codes are cut at fixed places, a chunk is summed in one order, and chunks are joined in one order, so that a
// result does not depend on which block computed what.
#pragma once

#include "kernels/common/gumbel.cuh"
#include "kernels/common/warp.cuh"

namespace simplear::SIMPLEAR_GPU {

constexpr int kChunkCodes = 128;  // four for each lane

struct ChunkResult {
  float highest, sum;  // of z, and of exp(z - highest) over the allowed codes; NaN when some z is not finite
  float best_score;    // largest z + noise
  int32_t best;        // its code, or -1
  float best_z;
};

// The better of the two: the larger score, of equal ones the lower code.
__device__ inline void take_better(ChunkResult& a, float score, int32_t code, float z) {
  if (code < 0 || score < a.best_score) return;
  if (score == a.best_score && a.best >= 0 && a.best < code) return;
  a.best_score = score;
  a.best = code;
  a.best_z = z;
}

__device__ inline void reduce_best(ChunkResult& a) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) {
    const float score = __shfl_xor_sync(0xffffffffu, a.best_score, bits),
                z = __shfl_xor_sync(0xffffffffu, a.best_z, bits);
    const int32_t code = __shfl_xor_sync(0xffffffffu, a.best, bits);
    take_better(a, score, code, z);
  }
}

// z: those of codes first + 4 lane .. + 3. Every lane gets the result.
__device__ inline ChunkResult sample_chunk(const float (&z)[4], int32_t first, int32_t num_codes, float threshold,
                                           bool is_greedy, uint64_t seed, int32_t position) {
  const int32_t code = first + 4 * static_cast<int32_t>(threadIdx.x % 32);
  float highest = -INFINITY, flaws = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (code + i >= num_codes) continue;
    highest = fmaxf(highest, z[i]);
    flaws += z[i] * 0.0f;
  }
  ChunkResult result{warp_max(highest), 0.0f, -INFINITY, -1, 0.0f};
  float noise[4] = {};
  if (!is_greedy) {
    const float4 drawn = gumbel_noise4(seed, position, static_cast<uint32_t>(code) / 4);
    noise[0] = drawn.x;
    noise[1] = drawn.y;
    noise[2] = drawn.z;
    noise[3] = drawn.w;
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (code + i >= num_codes || !(z[i] >= threshold)) continue;
    sum += expf(z[i] - result.highest);
    take_better(result, z[i] + noise[i], code + i, z[i]);
  }
  result.sum = warp_sum(sum) + warp_sum(flaws);
  reduce_best(result);
  return result;
}

// Joins the chunks of a draw, by one warp. Every lane gets the result.
__device__ inline void join_chunks(const ChunkResult* chunks, int num_chunks, bool is_greedy, int32_t& token,
                                   float& log_prob) {
  const int lane = threadIdx.x % 32;
  ChunkResult winner{-INFINITY, 0.0f, -INFINITY, -1, 0.0f};
  for (int i = lane; i < num_chunks; i += 32) {
    winner.highest = fmaxf(winner.highest, chunks[i].highest);
    take_better(winner, chunks[i].best_score, chunks[i].best, chunks[i].best_z);
  }
  const float highest = warp_max(winner.highest);
  float sum = 0.0f;
  for (int i = lane; i < num_chunks; i += 32) sum += chunks[i].sum * expf(chunks[i].highest - highest);
  sum = warp_sum(sum);
  reduce_best(winner);
  const bool is_finite = sum - sum == 0.0f && winner.best >= 0;
  token = is_finite ? winner.best : -1;
  log_prob = !is_finite ? NAN : is_greedy ? 0.0f : (winner.best_z - highest) - logf(sum);
}

}  // namespace simplear::SIMPLEAR_GPU
