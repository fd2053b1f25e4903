// Rows of activations on their way into a product: RMSNorm if there is one, rounded to the type of the weights.
//
// Every block prepares the rows for itself. That is K numbers a row out of the second-level cache, less than handing
// them over through one more kernel would take. A warp does a row at a time, so its sum of squares has one order.
#pragma once

#include "kernels/common/product_shape.h"
#include "kernels/common/skinny_product.cuh"

namespace simplear::SIMPLEAR_GPU {

struct ActivationSource {
  AnyPtr x;            // [*, K] float32 or bfloat16
  AnyPtr norm_weight;  // [K] float32 or bfloat16, or null
  float eps;
  int32_t k;
};

// What the kernels assume of K numbers in a row, so that four can be loaded at once wherever K is a multiple of four.
inline void check_aligned(const AnyPtr& pointer, const char* op, const char* name) {
  check(reinterpret_cast<uintptr_t>(pointer.data) % 16 == 0, ErrorKind::kInvalidRequest, op, ".", name,
        ": expected an address that is a multiple of 16");
}

__device__ inline float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ inline float4 load4(const uint16_t* from) {
  const uint2 pairs = *reinterpret_cast<const uint2*>(from);
  return make_float4(__uint_as_float(pairs.x << 16), __uint_as_float(pairs.x & 0xffff0000u),
                     __uint_as_float(pairs.y << 16), __uint_as_float(pairs.y & 0xffff0000u));
}

__device__ inline void store4(float* to, const float4& x) { *reinterpret_cast<float4*>(to) = x; }
__device__ inline void store4(uint16_t* to, const float4& x) {
  *reinterpret_cast<uint2*>(to) = make_uint2(to_bfloat16(x.x) | uint32_t{to_bfloat16(x.y)} << 16,
                                             to_bfloat16(x.z) | uint32_t{to_bfloat16(x.w)} << 16);
}

// RMSNorm and rounding of one row, by one warp.
template <class W, class X, class N>
__device__ void normalize_row(const X* x, const N* norm, float eps, int k, Activation<W>* to) {
  const int lane = threadIdx.x % 32;
  const bool by_four = k % 4 == 0;
  float sum = 0.0f;
  if (by_four) {
#pragma unroll 4
    for (int i = 4 * lane; i < k; i += 128) {
      const float4 v = load4(x + i);
      sum = fmaf(v.x, v.x, sum);
      sum = fmaf(v.y, v.y, sum);
      sum = fmaf(v.z, v.z, sum);
      sum = fmaf(v.w, v.w, sum);
    }
  } else {
    for (int i = lane; i < k; i += 32) sum = fmaf(to_float(x[i]), to_float(x[i]), sum);
  }
  const float scale = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(k) + eps);
  if (by_four) {
#pragma unroll 4
    for (int i = 4 * lane; i < k; i += 128) {
      const float4 v = load4(x + i), n = load4(norm + i);
      store4(to + i, make_float4(v.x * scale * n.x, v.y * scale * n.y, v.z * scale * n.z, v.w * scale * n.w));
    }
  } else {
    for (int i = lane; i < k; i += 32) store(to + i, to_float(x[i]) * scale * to_float(norm[i]));
  }
}

// Rounding of all rows, by the whole block: a row of many numbers would keep one warp waiting for long.
template <class W, class X, class Rows>
__device__ void round_rows(const X* x, int k, int num_rows, const Rows& rows, Activation<W>* to) {
  const int64_t stride = activation_stride<W>(k);
  const int step = k % 4 == 0 ? 4 : 1, pieces = k / step;
#pragma unroll 4
  for (int i = threadIdx.x; i < num_rows * pieces; i += kProductThreads) {
    const int r = i / pieces, column = i % pieces * step;
    const int64_t row = rows(r);
    if (row < 0) continue;
    if (step == 4) store4(to + r * stride + column, load4(x + row * k + column));
    else store(to + r * stride + column, to_float(x[row * k + column]));
  }
}

// rows(r): row of x that becomes row r, or -1 where there is none and nobody looks at what comes of it. The caller
// synchronizes.
template <class W, class Rows>
__device__ void load_activations(const ActivationSource& source, int num_rows, const Rows& rows, Activation<W>* to) {
  const int k = source.k;
  const int64_t stride = activation_stride<W>(k);
  const int end = static_cast<int>(divide_up(k, kTileColumns<W>)) * kTileColumns<W>;
  for (int i = threadIdx.x; i < num_rows * (end - k); i += kProductThreads)
    store(to + i / (end - k) * stride + k + i % (end - k), 0.0f);
  const auto prepare = [&](const auto* x) {
    if (source.norm_weight.data == nullptr) return round_rows<W>(x, k, num_rows, rows, to);
    for (int r = threadIdx.x / 32; r < num_rows; r += kSlices) {
      const int64_t row = rows(r);
      if (row < 0) continue;
      if (source.norm_weight.dtype == DType::kBFloat16)
        normalize_row<W>(x + row * k, static_cast<const uint16_t*>(source.norm_weight.data), source.eps, k,
                         to + r * stride);
      else
        normalize_row<W>(x + row * k, static_cast<const float*>(source.norm_weight.data), source.eps, k,
                         to + r * stride);
    }
  };
  if (source.x.dtype == DType::kBFloat16) prepare(static_cast<const uint16_t*>(source.x.data));
  else prepare(static_cast<const float*>(source.x.data));
}

// Calls run.template operator()<W, groups>() with as many groups of 8 rows at once as `num_rows` want and shared memory
// holds. Product<W, groups>: the SkinnyProduct of an op.
template <template <class, int> class Product, class W, class Run>
void with_row_groups(int32_t num_rows, int32_t k, const Launcher& launcher, const Run& run) {
  const int64_t bytes[3] = {Product<W, 1>::shared_bytes(k), Product<W, 2>::shared_bytes(k),
                            Product<W, 4>::shared_bytes(k)};
  switch (row_groups(num_rows, static_cast<int64_t>(launcher.max_shared_bytes), bytes)) {
    case 4: return run.template operator()<W, 4>();
    case 2: return run.template operator()<W, 2>();
    default: return run.template operator()<W, 1>();  // where that is too much, launch() says so
  }
}

// The same for weights of any type that the kernels take.
template <template <class, int> class Product, class Run>
void with_weight_type(const AnyPtr& weight, const char* op, int32_t num_rows, int32_t k, const Launcher& launcher,
                      const Run& run) {
  check_aligned(weight, op, "weight");
  switch (weight.dtype) {
    case DType::kFloat32: return run.template operator()<float, 1>();
    case DType::kBFloat16: return with_row_groups<Product, uint16_t>(num_rows, k, launcher, run);
    case DType::kFloat8E4M3: return with_row_groups<Product, Float8>(num_rows, k, launcher, run);
    default:
      fail(ErrorKind::kUnsupported, op, ".weight: expected float32, bfloat16 or float8_e4m3 on a GPU, got ",
           name_of(weight.dtype));
  }
}

}  // namespace simplear::SIMPLEAR_GPU
