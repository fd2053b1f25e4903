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

// The largest t such that the entries z >= t weigh at least `target` together (radix descent over sort keys, most
// significant bits first). weight(z) >= 0 is added in order of index.
template <class Weight>
inline float upper_threshold(const float* z, int64_t n, double target, const Weight& weight) {
  constexpr int kBits = 8, kBins = 1 << kBits;
  uint32_t prefix = 0;
  for (int shift = 32 - kBits; shift >= 0; shift -= kBits) {
    double mass[kBins] = {};
    bool present[kBins] = {};
    for (int64_t v = 0; v < n; ++v) {
      const uint32_t key = sort_key(z[v]);
      if (shift < 32 - kBits && key >> (shift + kBits) != prefix) continue;
      mass[key >> shift & (kBins - 1)] += weight(z[v]);
      present[key >> shift & (kBins - 1)] = true;
    }
    int chosen = -1;
    for (int bin = kBins - 1; bin >= 0; --bin) {
      if (!present[bin]) continue;
      chosen = bin;
      if (mass[bin] >= target) break;
      target -= mass[bin];
    }
    if (chosen < 0) return -INFINITY;
    prefix = prefix << kBits | static_cast<uint32_t>(chosen);
  }
  return from_sort_key(prefix);
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

// The smallest z that top_k, then top_p leave of all n.
inline float allowed_threshold(const float* z, int64_t n, int32_t top_k, float top_p) {
  float threshold = -INFINITY;
  if (top_k < n && top_k <= kSmallTopK) threshold = kth_largest(z, n, top_k);
  else if (top_k < n) threshold = upper_threshold(z, n, top_k, [](float) { return 1.0; });
  if (top_p < 1.0f) {
    float top = -INFINITY;
    for (int64_t v = 0; v < n; ++v) top = z[v] > top ? z[v] : top;
    const auto weight = [&](float x) { return x >= threshold ? static_cast<double>(expf(x - top)) : 0.0; };
    double total = 0;
    for (int64_t v = 0; v < n; ++v) total += weight(z[v]);
    const float nucleus = upper_threshold(z, n, top_p * total, weight);
    threshold = nucleus > threshold ? nucleus : threshold;
  }
  return threshold;
}

}  // namespace simplear::SIMPLEAR_ISA
