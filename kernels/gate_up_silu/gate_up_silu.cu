// As linear.cu, but a group of weights is a tile of gate rows and the tile of up rows that belong to it, so both sums
// of an output lie in the same block and only their product is written.
#include "kernels/common/activations.cuh"
#include "kernels/gate_up_silu/gate_up_silu.h"

namespace simplear::SIMPLEAR_GPU {
namespace {

constexpr int kStages = 16;

template <class W, int kGroups>
using GatedProduct = SkinnyProduct<W, kGroups, 2, kStages>;

template <class W, int kGroups, class Y>
__global__ void __launch_bounds__(kProductThreads, 1) multiply_gated(GateUpSiluParams p, int groups_per_block) {
  using Product = GatedProduct<W, kGroups>;
  allow_next_kernel();
  const int num_pairs = static_cast<int>(divide_up(p.intermediate_size, kTileRows));
  const int first = blockIdx.x * groups_per_block, count = min(groups_per_block, num_pairs - first);
  Product product(WeightTiles<W>(p.weight, 2 * num_pairs, p.hidden_size), {first, count}, dynamic_shared());

  wait_for_previous_kernel();
  const int first_row = blockIdx.y * Product::kRows, num_rows = min(Product::kRows, p.num_rows - first_row);
  load_activations<W>(
      {p.x, p.norm_weight, p.eps, p.hidden_size}, Product::kRows,
      [&](int r) { return r < num_rows ? int64_t{first_row} + r : -1; }, product.activations());
  __syncthreads();

  for (int group = first; group < first + count; ++group) {
    product.compute(p.hidden_size);
    for (int i = threadIdx.x; i < num_rows * kTileRows; i += kProductThreads) {
      const int row = i / kTileRows, output = i % kTileRows, column = group * kTileRows + output;
      if (column >= p.intermediate_size) continue;
      const float gate = product.sum(row, output), up = product.sum(row, kTileRows + output);
      store(static_cast<Y*>(p.y.data) + int64_t{first_row + row} * p.intermediate_size + column,
            gate / (1.0f + expf(-gate)) * up);
    }
  }
}

template <class W, int kGroups>
void run(const GateUpSiluParams& p, Launcher& launcher) {
  using Product = GatedProduct<W, kGroups>;
  const int64_t shared = Product::shared_bytes(p.hidden_size);
  const ProductBlocks blocks =
      divide_groups(static_cast<int32_t>(divide_up(p.intermediate_size, kTileRows)), launcher.num_multiprocessors,
                    static_cast<int32_t>(launcher.max_shared_bytes / shared));
  const LaunchShape shape{dim3(blocks.num_blocks, divide_up(p.num_rows, Product::kRows)), dim3(kProductThreads),
                          static_cast<size_t>(shared)};
  const auto start = [&](auto kernel) { launch(launcher, "gate_up_silu", kernel, shape, p, blocks.groups_per_block); };
  if (p.y.dtype == DType::kBFloat16) start(multiply_gated<W, kGroups, uint16_t>);
  else start(multiply_gated<W, kGroups, float>);
}

void gate_up_silu(const GateUpSiluParams& p, Launcher& launcher) {
  if (p.num_rows == 0) return;
  check_aligned(p.x, "gate_up_silu", "x");
  check_aligned(p.norm_weight, "gate_up_silu", "norm_weight");
  with_weight_type<GatedProduct>(p.weight, "gate_up_silu", p.num_rows, p.hidden_size, launcher,
                                 [&]<class W, int kGroups>() { run<W, kGroups>(p, launcher); });
}

}  // namespace

SIMPLEAR_CUDA_OP(gate_up_silu, GateUpSiluParams, kGateUpSiluFields, gate_up_silu);

}  // namespace simplear::SIMPLEAR_GPU
