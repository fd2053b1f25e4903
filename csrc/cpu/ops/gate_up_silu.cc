#include "kernels/gate_up_silu/gate_up_silu.h"

#include "cpu/product.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

inline Vec silu(Vec g) { return g / (1.0f + exp(-g)); }

// sums: 16 of gate, 16 of up, twice. Writes the `count` outputs that exist, of 32.
template <class Y>
inline void finish_row(const float* sums, Y* y, int64_t count) {
  for (int64_t first = 0; first < count; first += kPanelRows)
    for (int64_t v = 0; v < kPanelRows && first + v < count; v += kLanes) {
      const float* gate = sums + 2 * first + v;
      const Vec gated = silu(load(gate)) * load(gate + kPanelRows);
      if (first + v + kLanes <= count) {
        store(y + first + v, gated);
        continue;
      }
      for (int64_t j = 0; first + v + j < count; ++j) store_one(y + first + v + j, gated[j]);
    }
}

void gate_up_silu(const GateUpSiluParams& p, ThreadPool& pool) {
  if (p.num_rows == 0) return;
  constexpr int64_t kGroupOutputs = kGroupColumns / 2;
  const int64_t outputs = p.intermediate_size, columns = num_panels(outputs) * 2 * kPanelRows;
  const RowSource source{p.x, nullptr, p.norm_weight, p.eps, p.num_rows, p.hidden_size};
  const Operand x = prepare(source, p.weight.dtype, pool.scratch(0, operand_bytes(source, p.weight.dtype)), pool);
  parallel_for(pool, num_groups(columns), group_grain(p.num_rows, p.hidden_size), [&](int64_t begin, int64_t end, int) {
    product(x, p.num_rows, p.weight, columns, begin, end, [&](int64_t row, int64_t group, const float* sums) {
      const int64_t first = group * kGroupOutputs, at = row * outputs + first;
      const int64_t count = outputs - first < kGroupOutputs ? outputs - first : kGroupOutputs;
      if (p.y.dtype == DType::kBFloat16) finish_row(sums, static_cast<uint16_t*>(p.y.data) + at, count);
      else finish_row(sums, static_cast<float*>(p.y.data) + at, count);
    });
  });
}

}  // namespace

SIMPLEAR_CPU_OP(gate_up_silu, GateUpSiluParams, kGateUpSiluFields, gate_up_silu);

}  // namespace simplear::SIMPLEAR_ISA
