#include "cuda/op.h"

// The linker names the ends of the section.
extern "C" const simplear::CudaOp* const __start_simplear_cuda_ops[];
extern "C" const simplear::CudaOp* const __stop_simplear_cuda_ops[];

namespace simplear {

std::span<const CudaOp* const> all_cuda_ops() { return {__start_simplear_cuda_ops, __stop_simplear_cuda_ops}; }

const CudaOp* find_cuda_op(std::string_view op, std::string_view impl) {
  for (const CudaOp* entry : all_cuda_ops())
    if (op == entry->op && impl == entry->impl) return entry;
  return nullptr;
}

}  // namespace simplear
