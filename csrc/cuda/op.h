// How an operation presents itself on a GPU: as in core/op.h, but it runs with a Launcher.
//
// kernels/<op>/<op>.cu is compiled twice, by nvcc into namespace simplear::cuda as the implementation "cuda", and by
// the C++ compiler into namespace simplear::simt as the implementation "simt" (csrc/simt/cuda_language.h). The latter
// also registers as an implementation for the host, so that whatever tests an op tests its kernel.
#pragma once

#include "core/op.h"
#include "cuda/launcher.h"

#if defined(__CUDACC__)
#define SIMPLEAR_GPU cuda
#else
#define SIMPLEAR_GPU simt
#endif

namespace simplear {

struct CudaOp {
  const char* op;    // "linear"
  const char* impl;  // "cuda" or "simt"
  const Field* fields;
  size_t num_fields;
  size_t params_size;
  void (*run)(const void* params, Launcher& launcher);
};

// Every implementation that was linked in, in no particular order.
std::span<const CudaOp* const> all_cuda_ops();

// nullptr when absent.
const CudaOp* find_cuda_op(std::string_view op, std::string_view impl);

namespace simt {
// Runs on host memory: workspace is scratch of the pool's first thread.
void run_on_host(const CudaOp& op, const void* params, ThreadPool& pool);
}  // namespace simt

#define SIMPLEAR_REGISTER_CUDA_OP(op_name, impl_name, Params, fields_table, function)                           \
  static void run_on_device_##op_name(const void* params, ::simplear::Launcher& launcher) {                     \
    function(*static_cast<const Params*>(params), launcher);                                                    \
  }                                                                                                             \
  static constinit const ::simplear::CudaOp cuda_op_##op_name = {                                               \
      #op_name, impl_name, fields_table, std::size(fields_table), sizeof(Params), &run_on_device_##op_name};    \
  [[gnu::used,                                                                                                  \
    gnu::section("simplear_cuda_ops")]] static constinit const ::simplear::CudaOp* const cuda_entry_##op_name = \
      &cuda_op_##op_name

// Ends a .cu file: void function(const Params&, Launcher&).
#if defined(__CUDACC__)
#define SIMPLEAR_CUDA_OP(op_name, Params, fields_table, function) \
  SIMPLEAR_REGISTER_CUDA_OP(op_name, "cuda", Params, fields_table, function)
#else
#define SIMPLEAR_CUDA_OP(op_name, Params, fields_table, function)                         \
  SIMPLEAR_REGISTER_CUDA_OP(op_name, "simt", Params, fields_table, function);             \
  static void run_on_host_##op_name(const Params& params, ::simplear::ThreadPool& pool) { \
    ::simplear::simt::run_on_host(cuda_op_##op_name, &params, pool);                      \
  }                                                                                       \
  SIMPLEAR_REGISTER_OP(op_name, "simt", Params, fields_table, run_on_host_##op_name)
#endif

}  // namespace simplear
