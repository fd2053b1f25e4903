#include "core/tensor.h"

#include <cstdlib>

#include "core/check.h"
#include "core/huge_pages.h"

namespace simplear {

std::string name_of(DeviceId device) {
  if (device.is_host()) return "cpu";
  return (device.kind == DeviceKind::kCuda ? "cuda:" : "simulated:") + std::to_string(device.index);
}

void check_shape(const std::vector<int64_t>& shape, DType dtype) {
  constexpr int64_t kMostBytes = int64_t{1} << 62;
  int64_t bytes = static_cast<int64_t>(size_of(dtype));
  for (int64_t extent : shape) {
    check(extent >= 0, ErrorKind::kInternal, "tensor: negative extent ", extent);
    check(!__builtin_mul_overflow(bytes, extent, &bytes) && bytes <= kMostBytes, ErrorKind::kCapacity,
          "tensor: the shape overflows");
  }
}

Tensor Tensor::zeros(std::vector<int64_t> shape, DType dtype) {
  check_shape(shape, dtype);
  Tensor tensor;
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  const size_t bytes = tensor.bytes();
  if (bytes >= kMinHugePageBytes) {
    tensor.owner = allocate_on_huge_pages(bytes);
  } else {
    const size_t padded = (bytes + 63) / 64 * 64 + 64;
    void* memory = std::aligned_alloc(64, padded);
    if (memory == nullptr) fail(ErrorKind::kCapacity, "out of memory: the system refused ", padded, " bytes");
    __builtin_memset(memory, 0, padded);
    tensor.owner = std::shared_ptr<void>(memory, [](void* p) { std::free(p); });
  }
  tensor.data = tensor.owner.get();
  return tensor;
}

}  // namespace simplear
