// See kernels/common/skinny_product.cuh for how a product is computed. Rows of a step that do not fit in one pass take
// another one over the same weights, which the second-level cache still holds for most matrices.
#include "kernels/common/activations.cuh"
#include "kernels/linear/linear.h"

namespace simplear::SIMPLEAR_GPU {
namespace {

// Tiles of weights on their way for each warp. With more rows, or many columns, shared memory has to hold activations.
constexpr int kFewStages = 4;
template <int kGroups>
constexpr int kStages = kGroups == 1 ? 16 : 8;

template <class W, int kGroups>
using LinearProduct = SkinnyProduct<W, kGroups, 1, kStages<kGroups>>;
template <class W>
using LongLinearProduct = SkinnyProduct<W, 1, 1, kFewStages>;

template <class Product, class W, class Y>
__global__ void __launch_bounds__(kProductThreads, 1) multiply(LinearParams p, int groups_per_block) {
  allow_next_kernel();
  const WeightTiles<W> weights(p.weight, divide_up(p.out_features, kTileRows), p.in_features);
  const int first = blockIdx.x * groups_per_block, count = min(groups_per_block, weights.num_row_tiles - first);
  Product product(weights, {first, count}, dynamic_shared());

  wait_for_previous_kernel();
  const int first_row = blockIdx.y * Product::kRows, num_rows = min(Product::kRows, p.num_rows - first_row);
  load_activations<W>(
      {p.x, p.norm_weight, p.eps, p.in_features}, Product::kRows,
      [&](int r) { return r < num_rows ? int64_t{first_row} + r : -1; }, product.activations());
  __syncthreads();

  for (int group = first; group < first + count; ++group) {
    product.compute(p.in_features);
    for (int i = threadIdx.x; i < num_rows * Product::kOutputs; i += kProductThreads) {
      const int row = i / Product::kOutputs, output = i % Product::kOutputs, m = group * Product::kOutputs + output;
      if (m >= p.out_features) continue;
      float y = product.sum(row, output);
      if (p.bias != nullptr) y += p.bias[m];
      Y* const at = static_cast<Y*>(p.y.data) + int64_t{first_row + row} * p.out_features + m;
      if (p.accumulate) y += to_float(*at);
      store(at, y);
    }
  }
}

template <class Product, class W>
void run_product(const LinearParams& p, Launcher& launcher) {
  const int64_t shared = Product::shared_bytes(p.in_features);
  const ProductBlocks blocks =
      divide_groups(static_cast<int32_t>(divide_up(p.out_features, kTileRows)), launcher.num_multiprocessors,
                    static_cast<int32_t>(launcher.max_shared_bytes / shared));
  const LaunchShape shape{dim3(blocks.num_blocks, divide_up(p.num_rows, Product::kRows)), dim3(kProductThreads),
                          static_cast<size_t>(shared)};
  const auto start = [&](auto kernel) { launch(launcher, "linear", kernel, shape, p, blocks.groups_per_block); };
  if (p.y.dtype == DType::kBFloat16) start(multiply<Product, W, uint16_t>);
  else start(multiply<Product, W, float>);
}

template <class W, int kGroups>
void run(const LinearParams& p, Launcher& launcher) {
  using Product = LinearProduct<W, kGroups>;
  if (Product::shared_bytes(p.in_features) <= static_cast<int64_t>(launcher.max_shared_bytes))
    run_product<Product, W>(p, launcher);
  else run_product<LongLinearProduct<W>, W>(p, launcher);
}

void linear(const LinearParams& p, Launcher& launcher) {
  if (p.num_rows == 0) return;
  check_aligned(p.x, "linear", "x");
  check_aligned(p.norm_weight, "linear", "norm_weight");
  with_weight_type<LinearProduct>(p.weight, "linear", p.num_rows, p.in_features, launcher,
                                  [&]<class W, int kGroups>() { run<W, kGroups>(p, launcher); });
}

}  // namespace

SIMPLEAR_CUDA_OP(linear, LinearParams, kLinearFields, linear);

}  // namespace simplear::SIMPLEAR_GPU
