#include <cuda_runtime.h>

#include "cuda/device.h"

namespace simplear {

CudaDevices cuda_devices() {
  CudaDevices found;
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  for (int i = 0; error == cudaSuccess && i < count; ++i) {
    cudaDeviceProp properties;
    error = cudaGetDeviceProperties(&properties, i);
    if (error == cudaSuccess)
      found.devices.push_back({i, properties.name, properties.major, properties.minor, properties.totalGlobalMem});
  }
  if (error != cudaSuccess) found.problem = cudaGetErrorString(error);
  else if (count == 0) found.problem = "no device";
  return found;
}

}  // namespace simplear
