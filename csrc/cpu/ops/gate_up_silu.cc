#include "kernels/gate_up_silu/gate_up_silu.h"

#include "cpu/product.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

static_assert(kPanelRows == 2 * kTurnRows);

inline Vec silu(Vec g) { return g / (1.0f + exp(-g)); }

// sums: 32 of gate, 32 of up. Writes the `count` outputs that exist, of 32.
template <class Y>
inline void finish_row(const float* sums, Y* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec gated = silu(load(sums + i)) * load(sums + kTurnRows + i);
    if (i + kLanes <= count) {
      store(y + i, gated);
      continue;
    }
    for (int64_t j = 0; i + j < count; ++j) store_one(y + i + j, gated[j]);
  }
}

void gate_up_silu(const GateUpSiluParams& p, ThreadPool& pool) {
  if (p.num_rows == 0) return;
  const int64_t outputs = p.intermediate_size, panels = (outputs + kTurnRows - 1) / kTurnRows;
  const RowSource source{p.x, nullptr, p.norm_weight, p.eps, p.num_rows, p.hidden_size};
  const Operand x = prepare(source, p.weight.dtype, pool.scratch(0, operand_bytes(source, p.weight.dtype)), pool);
  shared_for(pool, panels, panel_grain(p.num_rows, p.hidden_size), [&](int64_t begin, int64_t end, int) {
    product(x, p.num_rows, p.weight, panels * kPanelRows, begin, end,
            [&](int64_t row, int64_t panel, const float* sums) {
              const int64_t first = panel * kTurnRows, at = row * outputs + first;
              const int64_t count = outputs - first < kTurnRows ? outputs - first : kTurnRows;
              if (p.y.dtype == DType::kBFloat16) finish_row(sums, static_cast<uint16_t*>(p.y.data) + at, count);
              else finish_row(sums, static_cast<float*>(p.y.data) + at, count);
            });
  });
}

}  // namespace

SIMPLEAR_CPU_OP(gate_up_silu, GateUpSiluParams, kGateUpSiluFields, gate_up_silu);

}  // namespace simplear::SIMPLEAR_ISA
