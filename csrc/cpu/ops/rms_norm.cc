#include "kernels/rms_norm/rms_norm.h"

#include <math.h>

#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

float mean_square(const float* x, int64_t n) {
  Vec sum{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec v = load(x + i);
    sum = fma(v, v, sum);
  }
  float total = reduce_add(sum);
  for (; i < n; ++i) total += x[i] * x[i];
  return total / static_cast<float>(n);
}

template <class W, class Y>
void norm_row(const float* x, const W* weight, Y* y, int64_t n, float eps) {
  const float scale = 1.0f / sqrtf(mean_square(x, n) + eps);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(x + i) * scale * load(weight + i));
  for (; i < n; ++i) store_one(y + i, x[i] * scale * to_float(weight[i]));
}

template <class W>
void norm_rows(const RmsNormParams& p, const W* weight, ThreadPool& pool) {
  const int64_t width = p.hidden_size;
  parallel_for(pool, p.num_rows, grain_of(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const float* x = p.x + (p.rows ? p.rows[n] : n) * width;
      if (p.y.dtype == DType::kBFloat16)
        norm_row(x, weight, static_cast<uint16_t*>(p.y.data) + n * width, width, p.eps);
      else norm_row(x, weight, static_cast<float*>(p.y.data) + n * width, width, p.eps);
    }
  });
}

void rms_norm(const RmsNormParams& p, ThreadPool& pool) {
  if (p.weight.dtype == DType::kBFloat16) norm_rows(p, static_cast<const uint16_t*>(p.weight.data), pool);
  else norm_rows(p, static_cast<const float*>(p.weight.data), pool);
}

}  // namespace

SIMPLEAR_CPU_OP(rms_norm, RmsNormParams, kRmsNormFields, rms_norm);

}  // namespace simplear::SIMPLEAR_ISA
