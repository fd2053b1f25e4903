#include "kernels/cfg_sample/cfg_sample.h"

#include <math.h>

#include "cpu/gumbel.h"
#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

// The vocabulary is cut at fixed places, so that sums over it do not depend on who adds them.
constexpr int64_t kChunk = 1024;
static_assert(kChunk % kNoiseCodes == 0);

struct ChunkResult {
  float max, sum;    // of z, and of exp(z - max), over the allowed codes of the chunk
  float best_score;  // largest z + noise
  int32_t best;
};

void guide_chunk(const CfgSampleParams& p, int64_t pair, int64_t begin, int64_t end) {
  const float* c = p.logits + p.cond_row[pair] * int64_t{p.num_codes};
  const bool guided = p.uncond_row[pair] >= 0;
  const float* u = guided ? p.logits + p.uncond_row[pair] * int64_t{p.num_codes} : c;
  const float scale = p.guidance_scale[pair];
  const float temperature = p.temperature[pair] > 0 ? p.temperature[pair] : 1.0f;
  float* z = p.guided + pair * p.num_codes;
  for (int64_t v = begin; v < end; ++v) {
    const float mixed = guided ? u[v] + scale * (c[v] - u[v]) : c[v];
    z[v] = mixed / temperature;
  }
}

// Order-preserving map of floats to unsigned integers.
inline uint32_t sort_key(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
inline float from_sort_key(uint32_t key) {
  const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// The largest t such that the entries z >= t weigh at least `target` together (radix descent over sort keys, most
// significant bits first). weight(z) >= 0 is added in order of index.
template <class Weight>
float upper_threshold(const float* z, int64_t n, double target, const Weight& weight) {
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

float allowed_threshold(const CfgSampleParams& p, int64_t pair) {
  const float* z = p.guided + pair * p.num_codes;
  float threshold = -INFINITY;
  if (p.top_k[pair] < p.num_codes)
    threshold = upper_threshold(z, p.num_codes, p.top_k[pair], [](float) { return 1.0; });
  if (p.top_p[pair] < 1.0f) {
    float top = -INFINITY;
    for (int64_t v = 0; v < p.num_codes; ++v) top = z[v] > top ? z[v] : top;
    const auto weight = [&](float x) { return x >= threshold ? static_cast<double>(expf(x - top)) : 0.0; };
    double total = 0;
    for (int64_t v = 0; v < p.num_codes; ++v) total += weight(z[v]);
    const float nucleus = upper_threshold(z, p.num_codes, p.top_p[pair] * total, weight);
    threshold = nucleus > threshold ? nucleus : threshold;
  }
  return threshold;
}

ChunkResult sample_chunk(const CfgSampleParams& p, int64_t pair, int64_t begin, int64_t end, float threshold) {
  const float* z = p.guided + pair * p.num_codes;
  const bool greedy = p.temperature[pair] == 0.0f;
  ChunkResult result{-INFINITY, 0.0f, -INFINITY, -1};
  bool finite = true;
  for (int64_t v = begin; v < end; ++v) {
    result.max = z[v] > result.max ? z[v] : result.max;
    finite &= z[v] - z[v] == 0.0f;
  }
  float padded[kChunk], noise[kNoiseCodes];
  for (int64_t v = begin; v < end; ++v) padded[v - begin] = z[v] >= threshold ? z[v] : -INFINITY;
  for (int64_t v = end; v < begin + kChunk; ++v) padded[v - begin] = -INFINITY;
  Vec sum{};
  for (int64_t i = 0; i < kChunk; i += kLanes) sum += exp(load(padded + i) - result.max);
  result.sum = finite ? reduce_add(sum) : NAN;
  for (int64_t first = begin; first < end; first += kNoiseCodes) {
    if (!greedy)
      gumbel_noise(p.seed[pair], static_cast<uint32_t>(p.position[pair]), static_cast<uint32_t>(first), noise);
    for (int64_t i = 0; i < kNoiseCodes && first + i < end; ++i) {
      if (z[first + i] < threshold) continue;
      const float score = greedy ? z[first + i] : z[first + i] + noise[i];
      if (score > result.best_score) {
        result.best_score = score;
        result.best = static_cast<int32_t>(first + i);
      }
    }
  }
  return result;
}

// Chunks in order of code: the lowest code wins a tie, and sums are added in one order.
void finish_pair(const CfgSampleParams& p, int64_t pair, const ChunkResult* chunks, int64_t num_chunks) {
  float top = -INFINITY, best_score = -INFINITY;
  int32_t best = -1;
  for (int64_t i = 0; i < num_chunks; ++i) {
    top = chunks[i].max > top ? chunks[i].max : top;
    if (chunks[i].best_score > best_score) best_score = chunks[i].best_score, best = chunks[i].best;
  }
  float sum = 0.0f;
  for (int64_t i = 0; i < num_chunks; ++i) sum += chunks[i].sum * expf(chunks[i].max - top);
  const bool finite = sum - sum == 0.0f && best >= 0;
  p.token[pair] = finite ? best : -1;
  p.last_code[p.slot[pair]] = finite ? best : 0;
  const float* z = p.guided + pair * p.num_codes;
  if (!finite) p.log_prob[pair] = NAN;
  else if (p.temperature[pair] == 0.0f) p.log_prob[pair] = 0.0f;
  else p.log_prob[pair] = (z[best] - top) - logf(sum);
}

void cfg_sample(const CfgSampleParams& p, ThreadPool& pool) {
  if (p.num_pairs == 0) return;
  const int64_t num_chunks = (p.num_codes + kChunk - 1) / kChunk;
  const int64_t items = p.num_pairs * num_chunks;
  const auto chunk_end = [&](int64_t begin) { return begin + kChunk < p.num_codes ? begin + kChunk : p.num_codes; };
  // Thread 0's scratch serves all: it is sized before the threads start and written at disjoint places.
  auto* chunks = static_cast<ChunkResult*>(pool.scratch(0, items * sizeof(ChunkResult) + p.num_pairs * sizeof(float)));
  auto* thresholds = reinterpret_cast<float*>(chunks + items);
  parallel_for(pool, items, grain_of(kChunk), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % num_chunks * kChunk;
      guide_chunk(p, i / num_chunks, first, chunk_end(first));
    }
  });
  parallel_for(pool, p.num_pairs, [&](int64_t begin, int64_t end, int) {
    for (int64_t pair = begin; pair < end; ++pair) thresholds[pair] = allowed_threshold(p, pair);
  });
  parallel_for(pool, items, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % num_chunks * kChunk;
      chunks[i] = sample_chunk(p, i / num_chunks, first, chunk_end(first), thresholds[i / num_chunks]);
    }
  });
  for (int64_t pair = 0; pair < p.num_pairs; ++pair) finish_pair(p, pair, chunks + pair * num_chunks, num_chunks);
}

}  // namespace

SIMPLEAR_CPU_OP(cfg_sample, CfgSampleParams, kCfgSampleFields, cfg_sample);

}  // namespace simplear::SIMPLEAR_ISA
