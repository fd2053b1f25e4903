#include "kernels/silu_mul/silu_mul.h"

#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

inline Vec silu(Vec g) { return g / (1.0f + exp(-g)); }

template <class Y>
void silu_mul_row(const float* gate, const float* up, Y* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, silu(load(gate + i)) * load(up + i));
  if (i < n) {
    // The tail goes through the same vector code: an element's result must not depend on where a row ends.
    float g[kLanes] = {}, u[kLanes] = {};
    for (int64_t j = i; j < n; ++j) g[j - i] = gate[j], u[j - i] = up[j];
    store(g, silu(load(g)) * load(u));
    for (int64_t j = i; j < n; ++j) store_one(y + j, g[j - i]);
  }
}

void silu_mul(const SiluMulParams& p, ThreadPool& pool) {
  const int64_t width = p.intermediate_size;
  parallel_for(pool, p.num_rows, grain_of(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const float* gate = p.gate_up + n * 2 * width;
      if (p.y.dtype == DType::kBFloat16)
        silu_mul_row(gate, gate + width, static_cast<uint16_t*>(p.y.data) + n * width, width);
      else silu_mul_row(gate, gate + width, static_cast<float*>(p.y.data) + n * width, width);
    }
  });
}

}  // namespace

SIMPLEAR_CPU_OP(silu_mul, SiluMulParams, kSiluMulFields, silu_mul);

}  // namespace simplear::SIMPLEAR_ISA
