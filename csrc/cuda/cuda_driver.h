// The Driver of a real GPU; in a build without CUDA, the error that says so.
#pragma once

#include "cuda/driver.h"

namespace simplear {

bool is_cuda_built();

std::shared_ptr<Driver> make_cuda_driver(DeviceId id);

}  // namespace simplear
