// One block a token: a row of 896 bfloat16 numbers is 1.8 KB, so this is one trip to memory and nothing else.
#include "cuda/ptx.h"
#include "kernels/common/number.cuh"
#include "kernels/embed/embed.h"

namespace simplear::SIMPLEAR_GPU {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) embed_tokens(EmbedParams p) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t n = blockIdx.x, width = p.hidden_size;
  const int32_t token = p.token_ids[n];
  const int64_t id = token >= 0 ? token : p.last_code[p.slot[n]] + p.visual_offset;
  const T* from = static_cast<const T*>(p.table.data) + id * width;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) p.hidden[n * width + i] = to_float(from[i]);
}

void embed(const EmbedParams& p, Launcher& launcher) {
  if (p.num_tokens == 0) return;
  const LaunchShape shape{dim3(p.num_tokens), dim3(kThreads)};
  if (p.table.dtype == DType::kBFloat16) launch(launcher, "embed_tokens", embed_tokens<uint16_t>, shape, p);
  else launch(launcher, "embed_tokens", embed_tokens<float>, shape, p);
}

}  // namespace

SIMPLEAR_CUDA_OP(embed, EmbedParams, kEmbedFields, embed);

}  // namespace simplear::SIMPLEAR_GPU
