// One warp for each head of a token: it rotates a query, or rotates and appends a key, or appends a value. At decode
// this moves some 10 KB, so the launch is what it costs.
#include <type_traits>

#include "cuda/ptx.h"
#include "kernels/common/number.cuh"
#include "kernels/common/warp.cuh"
#include "kernels/rope_append/rope_append.h"

namespace simplear::SIMPLEAR_GPU {
namespace {

constexpr int kWarps = 4;

// What a cache of one byte a number keeps of x / scale.
template <class T>
constexpr float kLargest = 127.0f;
template <>
constexpr float kLargest<Float8> = 448.0f;
template <class T>
__device__ T code_of(float x) {
  if constexpr (std::is_same_v<T, Float8>) return to_float8(x);
  else return static_cast<T>(rintf(x));
}

// Writes element(i), i < dim, to to[i * stride]: rounded, or as a code and one scale.
template <class T, class Element>
__device__ void append(const Element& element, int dim, T* to, int64_t stride, float* scale) {
  const int lane = threadIdx.x;
  if constexpr (sizeof(T) > 1) {
    for (int i = lane; i < dim; i += 32) store(to + i * stride, element(i));
  } else {
    float top = 0.0f, flaws = 0.0f;
    for (int i = lane; i < dim; i += 32) {
      const float x = element(i);
      top = fmaxf(top, fabsf(x));
      flaws += x * 0.0f;  // NaN where x is not finite; a maximum may forget a NaN
    }
    const float whole = warp_max(top) / kLargest<T> + warp_sum(flaws);
    const float divisor = whole > 0.0f ? whole : 1.0f;
    for (int i = lane; i < dim; i += 32)
      to[i * stride] = code_of<T>(fmaxf(fminf(element(i) / divisor, kLargest<T>), -kLargest<T>));
    if (lane == 0) *scale = whole;
  }
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps) rotate_and_append(RopeAppendParams p) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int dim = p.head_dim, half = dim / 2, heads = p.num_heads, groups = p.num_kv_heads;
  const int64_t n = blockIdx.y;
  const int row = blockIdx.x * kWarps + threadIdx.y, lane = threadIdx.x;  // of the heads + 2 groups rows of a token
  if (row >= heads + 2 * groups) return;
  const float* x = p.qkv + (n * (heads + 2 * groups) + row) * dim;
  const float* cos = p.cos_sin + int64_t{p.positions[n]} * dim;
  const float* sin = cos + half;
  const auto rotated = [&](int i) {
    return i < half ? x[i] * cos[i] - x[i + half] * sin[i] : x[i] * cos[i - half] + x[i - half] * sin[i - half];
  };
  if (row < heads) {
    for (int i = lane; i < dim; i += 32) p.q[(n * heads + row) * dim + i] = rotated(i);
    return;
  }
  const int32_t slot = p.slot_mapping[n];
  if (slot < 0) return;  // a row that pads the step
  const bool is_key = row < heads + groups;
  const int64_t group = row - heads - (is_key ? 0 : groups);
  const int64_t block = (slot / kKvBlockSize) * int64_t{groups} + group, offset = slot % kKvBlockSize;
  const int64_t token = block * kKvBlockSize + offset;  // [B, G, 16]
  if (is_key)
    append(rotated, dim, static_cast<T*>(p.k_cache.data) + block * dim * kKvBlockSize + offset, kKvBlockSize,
           p.k_scale ? p.k_scale + token : nullptr);
  else
    append([&](int i) { return x[i]; }, dim, static_cast<T*>(p.v_cache.data) + token * dim, 1,
           p.v_scale ? p.v_scale + token : nullptr);
}

void rope_append(const RopeAppendParams& p, Launcher& launcher) {
  if (p.num_tokens == 0) return;
  const uint32_t rows = p.num_heads + 2 * p.num_kv_heads;
  const LaunchShape shape{dim3((rows + kWarps - 1) / kWarps, p.num_tokens), dim3(32, kWarps)};
  const auto run = [&](auto kernel) { launch(launcher, "rotate_and_append", kernel, shape, p); };
  if (p.k_cache.dtype == DType::kInt8) run(rotate_and_append<int8_t>);
  else if (p.k_cache.dtype == DType::kFloat8E4M3) run(rotate_and_append<Float8>);
  else if (p.k_cache.dtype == DType::kBFloat16) run(rotate_and_append<uint16_t>);
  else run(rotate_and_append<float>);
}

}  // namespace

SIMPLEAR_CUDA_OP(rope_append, RopeAppendParams, kRopeAppendFields, rope_append);

}  // namespace simplear::SIMPLEAR_GPU
