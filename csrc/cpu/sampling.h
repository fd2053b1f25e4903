// Pieces of guided sampling over one chunk of the vocabulary at a time; kernels/head_sample/head_sample.h has the
// rules.
//
// The vocabulary is cut at fixed places and chunks are joined in order of code, so that a result does not depend on who
// computed which part.
#pragma once

#include <math.h>

#include "cpu/gumbel.h"
#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {

constexpr int64_t kChunk = 1024;
static_assert(kChunk % kNoiseCodes == 0);

struct ChunkResult {
  float max, sum;    // of z, and of exp(z - max) over the allowed codes of the chunk
  float best_score;  // largest z + noise
  int32_t best;      // its code, or -1
  float best_z;
};

// z[i] for one chunk, -infinity behind its `count` codes. uncond is null without guidance.
inline void guide_chunk(const float* cond, const float* uncond, float scale, float temperature, int64_t count,
                        float* z) {
  const float divisor = temperature > 0 ? temperature : 1.0f;
  for (int64_t i = 0; i < count; ++i) z[i] = (uncond ? uncond[i] + scale * (cond[i] - uncond[i]) : cond[i]) / divisor;
  for (int64_t i = count; i < kChunk; ++i) z[i] = -INFINITY;
}

// z: kChunk entries, -infinity behind the `count` codes from `first` on.
inline ChunkResult sample_chunk(const float* z, int64_t first, int64_t count, float threshold, bool greedy,
                                uint64_t seed, int32_t position) {
  alignas(64) float masked[kChunk];
  Vec top = splat(-INFINITY);
  VecI strange{};
  for (int64_t i = 0; i < kChunk; i += kLanes) {
    const Vec value = load(z + i);
    top = max(value, top);
    const VecI is_finite = (value - value) == 0.0f;
    strange |= i + kLanes <= count ? ~is_finite : VecI{};
    store(masked + i, value >= threshold ? value : splat(-INFINITY));
  }
  bool finite = true;
  for (int lane = 0; lane < kLanes; ++lane) finite &= strange[lane] == 0;
  for (int64_t i = count / kLanes * kLanes; i < count; ++i) finite &= z[i] - z[i] == 0.0f;
  ChunkResult result{reduce_max(top), 0.0f, -INFINITY, -1, 0.0f};

  // Most codes are so far behind the best one that no noise could make up for it, and their noise is not computed.
  // Noise g is at most -log v of a cheap v, so a code can win only if v <= exp(z - best score) = exp(z - max) * reach.
  // Reach has room for the roundings in between; it matters for speed alone.
  const float room = 1e-3f + 1e-6f * (result.max < 0 ? -result.max : result.max);
  float reach = INFINITY;
  Vec sum{}, best_score = splat(-INFINITY);
  VecI best = splat(int32_t{-1}), lane_index;
  for (int lane = 0; lane < kLanes; ++lane) lane_index[lane] = lane;
  alignas(64) uint32_t bits[kNoiseCodes] = {};
  for (int64_t block = 0; block < count; block += kNoiseCodes) {
    // Top-k leaves few codes, and most blocks none.
    Vec block_top = splat(-INFINITY);
    for (int i = 0; i < kNoiseCodes; i += kLanes) block_top = max(load(masked + block + i), block_top);
    if (reduce_max(block_top) == -INFINITY) continue;
    const int32_t code = static_cast<int32_t>(first + block);
    if (!greedy) random_bits(seed, static_cast<uint32_t>(position), static_cast<uint32_t>(code), bits);
    for (int i = 0; i < kNoiseCodes; i += kLanes) {
      const Vec value = load(masked + block + i), weight = exp(value - result.max);
      const VecU drawn = load_as<VecU>(bits + i);
      sum += weight;
      if (!greedy && !any(noise_bound(drawn) <= weight * reach)) continue;
      const Vec score = greedy ? value : value + gumbel(drawn);
      // Strictly better: the lowest code of a lane wins a tie.
      const VecI better = score > best_score;
      if (!any(better)) continue;
      best_score = better ? score : best_score;
      best = better ? lane_index + (code + i) : best;
      reach = exp(splat(result.max - reduce_max(best_score) + room))[0];
    }
  }
  result.sum = finite ? reduce_add(sum) : NAN;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (best[lane] < 0 || best_score[lane] < result.best_score) continue;
    if (best_score[lane] == result.best_score && result.best >= 0 && best[lane] > result.best) continue;
    result.best_score = best_score[lane];
    result.best = best[lane];
    result.best_z = z[best[lane] - first];
  }
  return result;
}

struct Sampled {
  int32_t token;
  float log_prob;
};

// Joins the chunks of one draw.
inline Sampled join_chunks(const ChunkResult* chunks, int64_t num_chunks, bool greedy) {
  float top = -INFINITY;
  const ChunkResult* winner = chunks;
  for (int64_t i = 0; i < num_chunks; ++i) {
    top = chunks[i].max > top ? chunks[i].max : top;
    if (chunks[i].best_score > winner->best_score) winner = chunks + i;
  }
  float sum = 0.0f;
  for (int64_t i = 0; i < num_chunks; ++i) sum += chunks[i].sum * expf(chunks[i].max - top);
  if (!(sum - sum == 0.0f) || winner->best < 0) return {-1, NAN};
  return {winner->best, greedy ? 0.0f : (winner->best_z - top) - logf(sum)};
}

// Order-preserving map of floats to unsigned integers.
inline uint32_t sort_key(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
inline float from_sort_key(uint32_t key) {
  const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Where a threshold cuts n numbers.
struct Cut {
  double weight;       // of those that are not below it
  float above, below;  // the smallest of those, and the largest of the others
};

// weights: of each number; null: 1. Sums of a block are float32, so that a lower threshold never weighs less.
inline Cut cut_at(const float* z, const float* weights, int64_t n, float threshold) {
  constexpr int64_t kBlock = 16 * kLanes;
  Cut cut{0.0, INFINITY, -INFINITY};
  Vec above = splat(INFINITY), below = splat(-INFINITY);
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    Vec sum{};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const Vec value = load(z + i);
      const VecI is_in = value >= threshold;
      sum += is_in ? (weights ? load(weights + i) : splat(1.0f)) : Vec{};
      above = min(is_in ? value : splat(INFINITY), above);
      below = max(is_in ? splat(-INFINITY) : value, below);
    }
    cut.weight += reduce_add(sum);
    for (; i < end; ++i) {
      if (z[i] >= threshold) cut.weight += weights ? weights[i] : 1.0f;
      if (z[i] >= threshold && z[i] < cut.above) cut.above = z[i];
      if (z[i] < threshold && z[i] > cut.below) cut.below = z[i];
    }
  }
  const float least = -reduce_max(-above), most = reduce_max(below);
  return {cut.weight, least < cut.above ? least : cut.above, most > cut.below ? most : cut.below};
}

// The largest number of z such that those that are not below it weigh `target` or more. The range in which it lies is
// halved until nothing is left between its ends; now and then by the order of all floats instead of by value, which
// is 32 halvings at most, whatever outliers there are.
inline float upper_threshold(const float* z, const float* weights, int64_t n, double target) {
  float low = cut_at(z, weights, n, -INFINITY).above, high = cut_at(z, weights, n, INFINITY).below;
  for (int pass = 1; low < high; ++pass) {
    const uint32_t low_key = sort_key(low), high_key = sort_key(high);
    float middle = pass % 4 == 0 ? from_sort_key(low_key + (high_key - low_key + 1) / 2) : low + (high - low) / 2;
    if (!(middle > low && middle <= high)) middle = high;
    const Cut cut = cut_at(z, weights, n, middle);
    if (cut.weight >= target) low = cut.above;
    else high = cut.below;
  }
  return low;
}

// The k-th largest of z, k in 1 .. kSmallTopK: one pass that looks closer only where a block holds something larger.
constexpr int32_t kSmallTopK = 64;
inline float kth_largest(const float* z, int64_t n, int32_t k) {
  constexpr int64_t kBlock = 4 * kLanes;
  float top[kSmallTopK];  // descending
  for (int32_t i = 0; i < k; ++i) top[i] = -INFINITY;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    if (end - begin == kBlock) {
      Vec block_top = load(z + begin);
      for (int64_t i = kLanes; i < kBlock; i += kLanes) block_top = max(load(z + begin + i), block_top);
      if (!(reduce_max(block_top) > top[k - 1])) continue;
    }
    for (int64_t i = begin; i < end; ++i) {
      if (!(z[i] > top[k - 1])) continue;
      int32_t at = k - 1;
      for (; at > 0 && top[at - 1] < z[i]; --at) top[at] = top[at - 1];
      top[at] = z[i];
    }
  }
  return top[k - 1];
}

// exp(z - top), 0 below the threshold; room for whole vectors. Returns their sum.
inline double weigh(const float* z, int64_t n, float threshold, float* weights) {
  Vec top = splat(-INFINITY);
  alignas(64) float last[kLanes];
  const int64_t whole = n / kLanes * kLanes;
  for (int lane = 0; lane < kLanes; ++lane) last[lane] = whole + lane < n ? z[whole + lane] : -INFINITY;
  for (int64_t i = 0; i < n; i += kLanes) top = max(load(i < whole ? z + i : last), top);
  const float most = reduce_max(top);
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec value = load(i < whole ? z + i : last);
    store(weights + i, value >= threshold ? exp(value - most) : Vec{});
  }
  return cut_at(z, weights, n, -INFINITY).weight;
}

// The smallest z that top_k, then top_p leave of all n. weights: memory for n floats and a vector more.
inline float allowed_threshold(const float* z, int64_t n, int32_t top_k, float top_p, float* weights) {
  float threshold = -INFINITY;
  if (top_k < n) threshold = top_k <= kSmallTopK ? kth_largest(z, n, top_k) : upper_threshold(z, nullptr, n, top_k);
  if (top_p < 1.0f) {
    const double total = weigh(z, n, threshold, weights);
    const float nucleus = upper_threshold(z, weights, n, top_p * total);
    threshold = nucleus > threshold ? nucleus : threshold;
  }
  return threshold;
}

}  // namespace simplear::SIMPLEAR_ISA
