#include "kernels/group_norm/group_norm.h"

#include <math.h>

#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

constexpr int kAtOnce = 4;               // vectors of channels whose moments stay in registers
constexpr int64_t kBlockPositions = 64;  // fixed: the order of summation must not depend on threads

struct Moments {
  double sum, sum_of_squares;
};

// Of NV vectors of channels: the first position, and the sums and squares of the others' distances from it.
template <int NV, class T>
inline void channel_moments(const T* x, int64_t count, int64_t channels, float* pivot, float* sum, float* squares) {
  Vec first[NV], total[NV] = {}, square[NV] = {};
  for (int v = 0; v < NV; ++v) first[v] = load(x + v * kLanes);
  for (int64_t position = 1; position < count; ++position)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const Vec d = load(x + position * channels + v * kLanes) - first[v];
      total[v] += d;
      square[v] = fma(d, d, square[v]);
    }
  for (int v = 0; v < NV; ++v) {
    store(pivot + v * kLanes, first[v]);
    store(sum + v * kLanes, total[v]);
    store(squares + v * kLanes, square[v]);
  }
}

// Moments of each group over positions [0, count) of one image's block. scratch: 3 * C floats.
template <class T>
void block_moments(const GroupNormParams& p, const T* x, int64_t count, float* scratch, Moments* out) {
  const int64_t channels = p.channels;
  float *pivot = scratch, *sum = pivot + channels, *squares = sum + channels;
  // Relative to the block's first position, so that squares of a large mean never meet a small variance.
  int64_t c = 0;
  for (; c + kAtOnce * kLanes <= channels; c += kAtOnce * kLanes)
    channel_moments<kAtOnce>(x + c, count, channels, pivot + c, sum + c, squares + c);
  for (; c + kLanes <= channels; c += kLanes)
    channel_moments<1>(x + c, count, channels, pivot + c, sum + c, squares + c);
  for (; c < channels; ++c) {
    pivot[c] = to_float(x[c]), sum[c] = 0.0f, squares[c] = 0.0f;
    for (int64_t position = 1; position < count; ++position) {
      const float d = to_float(x[position * channels + c]) - pivot[c];
      sum[c] += d;
      squares[c] += d * d;
    }
  }
  const int64_t width = channels / p.groups;
  for (int64_t g = 0; g < p.groups; ++g) {
    Moments total{0.0, 0.0};
    for (int64_t c = g * width; c < (g + 1) * width; ++c) {
      const double k = pivot[c], s = sum[c];
      total.sum += static_cast<double>(count) * k + s;
      total.sum_of_squares += squares[c] + k * (2.0 * s + static_cast<double>(count) * k);
    }
    out[g] = total;
  }
}

// y = scale[c] * x + shift[c] from the image's moments.
void affine_of(const GroupNormParams& p, const Moments* blocks, int64_t num_blocks, float* scale, float* shift) {
  const int64_t width = p.channels / p.groups;
  const double count = static_cast<double>(p.height) * static_cast<double>(p.width) * static_cast<double>(width);
  for (int64_t g = 0; g < p.groups; ++g) {
    Moments total{0.0, 0.0};
    for (int64_t b = 0; b < num_blocks; ++b) {
      total.sum += blocks[b * p.groups + g].sum;
      total.sum_of_squares += blocks[b * p.groups + g].sum_of_squares;
    }
    const double mean = total.sum / count;
    const double variance = total.sum_of_squares / count - mean * mean;
    const double inverse = 1.0 / sqrt((variance > 0.0 ? variance : 0.0) + static_cast<double>(p.eps));
    for (int64_t c = g * width; c < (g + 1) * width; ++c) {
      scale[c] = static_cast<float>(inverse * p.weight[c]);
      shift[c] = static_cast<float>(p.bias[c] - mean * inverse * p.weight[c]);
    }
  }
}

inline Vec silu(Vec n) { return n / (1.0f + exp(-n)); }

template <bool kSilu, class T, class Y>
void normalise(const T* x, Y* y, int64_t positions, int64_t channels, const float* scale, const float* shift) {
  for (int64_t position = 0; position < positions; ++position, x += channels, y += channels) {
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      const Vec n = fma(load(x + c), load(scale + c), load(shift + c));
      store(y + c, kSilu ? silu(n) : n);
    }
    if (c == channels) continue;
    // The tail goes through the same vector code: a channel's result must not depend on where the row ends.
    float a[kLanes] = {}, b[kLanes] = {}, v[kLanes] = {};
    for (int64_t j = c; j < channels; ++j) a[j - c] = scale[j], b[j - c] = shift[j], v[j - c] = to_float(x[j]);
    const Vec n = fma(load(v), load(a), load(b));
    store(v, kSilu ? silu(n) : n);
    for (int64_t j = c; j < channels; ++j) store_one(y + j, v[j - c]);
  }
}

template <class T, class Y>
void group_norm_as(const GroupNormParams& p, ThreadPool& pool) {
  const int64_t positions = int64_t{p.height} * p.width, channels = p.channels;
  const int64_t num_blocks = (positions + kBlockPositions - 1) / kBlockPositions;
  const size_t moments_bytes = p.batch * num_blocks * p.groups * sizeof(Moments);
  const size_t own_floats = 3 * channels;
  // One piece for all threads: every block's moments, every image's affine, then each thread's own.
  char* shared = static_cast<char*>(
      pool.scratch(0, moments_bytes + (p.batch * 2 * channels + pool.size() * own_floats) * sizeof(float)));
  Moments* moments = reinterpret_cast<Moments*>(shared);
  float* affine = reinterpret_cast<float*>(shared + moments_bytes);
  float* own = affine + p.batch * 2 * channels;
  const T* x = static_cast<const T*>(p.x.data);
  Y* y = static_cast<Y*>(p.y.data);

  const auto block_size = [&](int64_t block) {
    const int64_t left = positions - block % num_blocks * kBlockPositions;
    return left < kBlockPositions ? left : kBlockPositions;
  };
  const auto block_start = [&](int64_t block) {
    return (block / num_blocks * positions + block % num_blocks * kBlockPositions) * channels;
  };
  parallel_for(pool, p.batch * num_blocks, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t block = begin; block < end; ++block)
      block_moments(p, x + block_start(block), block_size(block), own + thread * own_floats,
                    moments + block * p.groups);
  });
  for (int64_t image = 0; image < p.batch; ++image) {
    float* scale = affine + image * 2 * channels;
    affine_of(p, moments + image * num_blocks * p.groups, num_blocks, scale, scale + channels);
  }
  parallel_for(pool, p.batch * num_blocks, [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin; block < end; ++block) {
      const float* scale = affine + block / num_blocks * 2 * channels;
      const auto apply = p.silu ? normalise<true, T, Y> : normalise<false, T, Y>;
      apply(x + block_start(block), y + block_start(block), block_size(block), channels, scale, scale + channels);
    }
  });
}

void group_norm(const GroupNormParams& p, ThreadPool& pool) {
  const bool bf16_out = p.y.dtype == DType::kBFloat16;
  if (p.x.dtype == DType::kBFloat16)
    bf16_out ? group_norm_as<uint16_t, uint16_t>(p, pool) : group_norm_as<uint16_t, float>(p, pool);
  else bf16_out ? group_norm_as<float, uint16_t>(p, pool) : group_norm_as<float, float>(p, pool);
}

}  // namespace

SIMPLEAR_CPU_OP(group_norm, GroupNormParams, kGroupNormFields, group_norm);

}  // namespace simplear::SIMPLEAR_ISA
