#include "kernels/linear/linear.h"

#include "cpu/product.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

// y = sums + bias + old y, where asked, for the `count` columns that exist.
template <class Y>
inline void finish_row(const LinearParams& p, const float* sums, Y* y, int64_t column, int64_t count) {
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    Vec sum = load(sums + j);
    if (p.bias) sum += load(p.bias + column + j);
    if (p.accumulate) sum += load(y + j);
    store(y + j, sum);
  }
  for (; j < count; ++j) {
    float sum = sums[j];
    if (p.bias) sum += p.bias[column + j];
    if (p.accumulate) sum += to_float(y[j]);
    store_one(y + j, sum);
  }
}

void linear(const LinearParams& p, ThreadPool& pool) {
  if (p.num_rows == 0) return;
  const int64_t out = p.out_features;
  const RowSource source{p.x, nullptr, p.norm_weight, p.eps, p.num_rows, p.in_features};
  const Operand x = prepare(source, p.weight.dtype, pool.scratch(0, operand_bytes(source, p.weight.dtype)), pool);
  shared_for(pool, num_panels(out), panel_grain(p.num_rows, p.in_features), [&](int64_t begin, int64_t end, int) {
    product(x, p.num_rows, p.weight, out, begin, end, [&](int64_t row, int64_t panel, const float* sums) {
      const int64_t column = panel * kPanelRows, at = row * out + column;
      const int64_t count = out - column < kPanelRows ? out - column : kPanelRows;
      if (p.y.dtype == DType::kBFloat16) finish_row(p, sums, static_cast<uint16_t*>(p.y.data) + at, column, count);
      else finish_row(p, sums, static_cast<float*>(p.y.data) + at, column, count);
    });
  });
}

}  // namespace

SIMPLEAR_CPU_OP(linear, LinearParams, kLinearFields, linear);

}  // namespace simplear::SIMPLEAR_ISA
