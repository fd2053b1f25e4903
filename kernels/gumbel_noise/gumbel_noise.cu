// A thread draws four codes. Sampling has its own copy of this in its epilogue; here the stores are what takes time.
#include "cuda/ptx.h"
#include "kernels/common/gumbel.cuh"
#include "kernels/gumbel_noise/gumbel_noise.h"

namespace simplear::SIMPLEAR_GPU {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) draw_noise(GumbelNoiseParams p) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t row = blockIdx.y, quad = int64_t{blockIdx.x} * kThreads + threadIdx.x, first = 4 * quad;
  if (first >= p.num_codes) return;
  const float4 noise = gumbel_noise4(p.seed[row], p.position[row], static_cast<uint32_t>(quad));
  float* to = p.noise + row * p.num_codes + first;
  to[0] = noise.x;
  if (first + 1 < p.num_codes) to[1] = noise.y;
  if (first + 2 < p.num_codes) to[2] = noise.z;
  if (first + 3 < p.num_codes) to[3] = noise.w;
}

void gumbel_noise(const GumbelNoiseParams& p, Launcher& launcher) {
  if (p.num_rows == 0 || p.num_codes == 0) return;
  const uint32_t blocks = (p.num_codes + 4 * kThreads - 1) / (4 * kThreads);
  launch(launcher, "draw_noise", draw_noise, {dim3(blocks, p.num_rows), dim3(kThreads)}, p);
}

}  // namespace

SIMPLEAR_CUDA_OP(gumbel_noise, GumbelNoiseParams, kGumbelNoiseFields, gumbel_noise);

}  // namespace simplear::SIMPLEAR_GPU
