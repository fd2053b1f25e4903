// One launch call for kernels, and the words that kernels are written in.
//
// Under nvcc it is cudaLaunchKernelEx with programmatic dependent launch; compiled as C++ the grid runs on the host.
// Every kernel that is launched here begins with allow_next_kernel() and calls wait_for_previous_kernel() in all of its
// threads before it reads what another kernel wrote, and before it writes anything (csrc/cuda/ptx.h).
#pragma once

#include <type_traits>

#include "cuda/op.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#else
#include "simt/cuda_language.h"
#include "simt/grid.h"
#endif

namespace simplear::SIMPLEAR_GPU {

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;  // dynamic shared memory of a block
};

#if defined(__CUDACC__)

inline void check_launch(cudaError_t error, const char* name) {
  check(error == cudaSuccess, ErrorKind::kInternal, "kernel ", name, ": ", cudaGetErrorString(error));
}

static __global__ void delay_next_kernel(uint64_t nanoseconds) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n\tgriddepcontrol.wait;" ::: "memory");
#endif
  uint64_t begin, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  while (now - begin < nanoseconds);
}

template <class... Params>
void launch(Launcher& launcher, const char* name, void (*kernel)(Params...), const LaunchShape& shape,
            std::type_identity_t<Params>... args) {
  check(shape.shared_bytes <= launcher.max_shared_bytes, ErrorKind::kUnsupported, "kernel ", name, " needs ",
        shape.shared_bytes, " bytes of shared memory, the device has ", launcher.max_shared_bytes);
  if (launcher.is_dry_run) return;
  cudaFuncAttributes own;
  check_launch(cudaFuncGetAttributes(&own, kernel), name);
  constexpr size_t kAlwaysThere = 48 * 1024;
  if (shape.shared_bytes > kAlwaysThere) {
    // The limit is the kernel's and not the launch's. Always as much as there is: what a launch needs would lower it
    // under another one, of another thread or in a graph.
    check_launch(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(launcher.max_shared_bytes - own.sharedSizeBytes)),
                 name);
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.stream = static_cast<cudaStream_t>(launcher.stream);
  config.attrs = &attribute;
  // Only where the code for sm_90a runs: kernels for sm_80, which anything newer takes and a build for sm_80 alone has, do
  // not know how to wait.
  config.numAttrs = launcher.is_dependent && own.binaryVersion == 90 && own.ptxVersion >= 90 ? 1 : 0;
  if (launcher.delay_ns > 0) {
    config.gridDim = config.blockDim = dim3(1);
    check_launch(cudaLaunchKernelEx(&config, delay_next_kernel, uint64_t{launcher.delay_ns}), "delay_next_kernel");
  }
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  check_launch(cudaLaunchKernelEx(&config, kernel, args...), name);
}

#else

template <class... Params>
void launch(Launcher& launcher, const char* name, void (*kernel)(Params...), const LaunchShape& shape,
            std::type_identity_t<Params>... args) {
  check(shape.shared_bytes <= launcher.max_shared_bytes, ErrorKind::kUnsupported, "kernel ", name, " needs ",
        shape.shared_bytes, " bytes of shared memory, the device has ", launcher.max_shared_bytes);
  if (launcher.is_dry_run) return;
  const auto thread = [&] { kernel(args...); };
  run_grid(
      name, shape.grid, shape.block, shape.shared_bytes,
      [](const void* body) { (*static_cast<const decltype(thread)*>(body))(); }, &thread);
}

#endif

}  // namespace simplear::SIMPLEAR_GPU
