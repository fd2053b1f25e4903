#include "kernels/linear/linear.h"

#include "cpu/gemm_tile.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

// Adds bias and the old y where asked, converts, and writes the `count` valid columns of one panel.
template <class Y>
inline void finish_panel(const LinearParams& p, Y* y, const Vec* acc, int64_t column, int64_t count) {
  float sums[kPanelRows];
  for (int v = 0; v < kVecsPerPanel; ++v) store(sums + v * kLanes, acc[v]);
  for (int64_t j = 0; j < count; ++j) {
    float sum = sums[j];
    if (p.bias) sum += p.bias[column + j];
    if (p.accumulate) sum += to_float(y[j]);
    store_one(y + j, sum);
  }
}

template <class T, class Y>
void linear_as(const LinearParams& p, ThreadPool& pool) {
  const T* x = static_cast<const T*>(p.x.data);
  const T* weight = static_cast<const T*>(p.weight.data);
  Y* y = static_cast<Y*>(p.y.data);
  const int64_t in = p.in_features, out = p.out_features;
  const int64_t stride = in * kPanelRows;
  // Threads own whole tiles of panels, so that both stream weights in full-width tiles.
  const int64_t groups = (num_panels(out) + kMaxTilePanels - 1) / kMaxTilePanels;
  // A vector multiply-add does the work of some ten simple elements.
  const int64_t grain = grain_of(p.num_rows * in * kMaxTilePanels * kPanelRows / 10);
  parallel_for(pool, groups, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * kMaxTilePanels;
      const int64_t last = first + kMaxTilePanels < num_panels(out) ? first + kMaxTilePanels : num_panels(out);
      for_each_tile(p.num_rows, first, last, [&]<int MR, int NP>(int64_t row, int64_t panel) {
        const T* rows[MR];
        for (int r = 0; r < MR; ++r) rows[r] = x + (row + r) * in;
        Tile<MR, NP> tile;
        tile.clear();
        tile.accumulate(rows, weight + panel * stride, stride, in);
        for (int r = 0; r < MR; ++r)
          for (int q = 0; q < NP; ++q) {
            const int64_t column = (panel + q) * kPanelRows;
            const int64_t count = out - column < kPanelRows ? out - column : kPanelRows;
            finish_panel(p, y + (row + r) * out + column, tile.acc[r] + q * kVecsPerPanel, column, count);
          }
      });
    }
  });
}

void linear(const LinearParams& p, ThreadPool& pool) {
  const bool bf16_out = p.y.dtype == DType::kBFloat16;
  if (p.x.dtype == DType::kBFloat16)
    bf16_out ? linear_as<uint16_t, uint16_t>(p, pool) : linear_as<uint16_t, float>(p, pool);
  else bf16_out ? linear_as<float, uint16_t>(p, pool) : linear_as<float, float>(p, pool);
}

}  // namespace

SIMPLEAR_CPU_OP(linear, LinearParams, kLinearFields, linear);

}  // namespace simplear::SIMPLEAR_ISA
