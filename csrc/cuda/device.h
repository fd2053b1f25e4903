// Which GPUs there are. Compiled with the CUDA kernels; without them there are none as far as the engine is concerned.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace simplear {

struct CudaDevice {
  int index;
  std::string name;
  int major, minor;     // compute capability
  size_t total_memory;  // bytes
};

struct CudaDevices {
  std::vector<CudaDevice> devices;
  std::string problem;  // why there are none: no driver, a driver that is too old, no device
};

CudaDevices cuda_devices();

}  // namespace simplear
