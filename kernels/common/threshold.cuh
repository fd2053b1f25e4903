// Where top-k and top-p cut: the smallest z that they leave, found by a block that descends through the bits of order-
// preserving keys, eight at a time. Counts and masses are integers, so the order of additions cannot matter.
#pragma once

#include "cuda/ptx.h"

namespace simplear::SIMPLEAR_GPU {

constexpr int kKeyBits = 8, kKeyBins = 1 << kKeyBits;

struct KeyHistogram {
  unsigned long long mass[kKeyBins];
  unsigned int count[kKeyBins];
  unsigned long long target;
  unsigned int prefix;
  int is_empty;
};

// An order-preserving map of floats to unsigned integers, and back.
__device__ inline uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_key(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// The largest t such that the entries z >= t weigh at least `target` together. Called by all threads of a block; h is
// shared memory.
template <class Weight>
__device__ float find_threshold(const float* z, int n, unsigned long long target, const Weight& weight,
                                KeyHistogram& h) {
  const int thread = threadIdx.x, num_threads = blockDim.x;
  uint32_t prefix = 0;
  for (int shift = 32 - kKeyBits; shift >= 0; shift -= kKeyBits) {
    __syncthreads();
    for (int bin = thread; bin < kKeyBins; bin += num_threads) {
      h.mass[bin] = 0;
      h.count[bin] = 0;
    }
    __syncthreads();
    for (int v = thread; v < n; v += num_threads) {
      const uint32_t key = key_of(z[v]);
      if (shift < 32 - kKeyBits && key >> (shift + kKeyBits) != prefix) continue;
      const int bin = key >> shift & (kKeyBins - 1);
      atomicAdd(&h.count[bin], 1u);
      const unsigned long long mass = weight(z[v]);
      if (mass > 0) atomicAdd(&h.mass[bin], mass);
    }
    __syncthreads();
    if (thread == 0) {
      int chosen = -1;
      for (int bin = kKeyBins - 1; bin >= 0; --bin) {
        if (h.count[bin] == 0) continue;
        chosen = bin;
        if (h.mass[bin] >= target) break;
        target -= h.mass[bin];
      }
      h.is_empty = chosen < 0;
      h.prefix = prefix << kKeyBits | static_cast<uint32_t>(chosen < 0 ? 0 : chosen);
      h.target = target;
    }
    __syncthreads();
    if (h.is_empty) return -INFINITY;
    prefix = h.prefix;
    target = h.target;
  }
  return from_key(prefix);
}

// Mass of a code relative to that of the most probable one, in units of 2^-40.
__device__ inline unsigned long long mass_of(float z, float highest) {
  return static_cast<unsigned long long>(expf(z - highest) * 1099511627776.0f);
}

// The smallest z that top_k, then top_p leave of all n. Called by all threads of a block.
__device__ inline float allowed_threshold(const float* z, int n, int top_k, float top_p, KeyHistogram& h) {
  float threshold = -INFINITY;
  if (top_k < n)
    threshold = find_threshold(z, n, static_cast<unsigned long long>(top_k), [](float) { return 1ull; }, h);
  if (top_p >= 1.0f) return threshold;
  const float highest = find_threshold(z, n, 1ull, [](float) { return 1ull; }, h);
  const auto weight = [=](float x) { return x >= threshold ? mass_of(x, highest) : 0ull; };
  __syncthreads();
  if (threadIdx.x == 0) h.target = 0;
  __syncthreads();
  unsigned long long own = 0;
  for (int v = threadIdx.x; v < n; v += blockDim.x) own += weight(z[v]);
  atomicAdd(&h.target, own);
  __syncthreads();
  // At least one unit: a set that holds nothing is not a set of codes.
  const double wanted = ceil(static_cast<double>(top_p) * static_cast<double>(h.target));
  const float nucleus = find_threshold(z, n, max(static_cast<unsigned long long>(wanted), 1ull), weight, h);
  return fmaxf(nucleus, threshold);
}

}  // namespace simplear::SIMPLEAR_GPU
