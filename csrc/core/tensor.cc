#include "core/tensor.h"

#include <sys/mman.h>

#include <cstdlib>

#include "core/check.h"

namespace simplear {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

std::shared_ptr<void> map_zeroed(size_t bytes) {
  // Whole huge pages, so that the start is aligned to one and the kernel can use them from the first byte.
  const size_t length = bytes + kHugePage;
  void* base = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) fail(ErrorKind::kCapacity, "out of memory: the system refused ", bytes, " bytes");
  const auto address = (reinterpret_cast<uintptr_t>(base) + kHugePage - 1) & ~(kHugePage - 1);
  void* aligned = reinterpret_cast<void*>(address);
  madvise(aligned, bytes, MADV_HUGEPAGE);
  return {aligned, [base, length](void*) { munmap(base, length); }};
}

}  // namespace

std::string name_of(DeviceId device) {
  if (device.is_host()) return "cpu";
  return (device.kind == DeviceKind::kCuda ? "cuda:" : "simulated:") + std::to_string(device.index);
}

Tensor Tensor::zeros(std::vector<int64_t> shape, DType dtype) {
  Tensor tensor;
  tensor.dtype = dtype;
  int64_t count = 1;
  for (int64_t extent : shape) {
    check(extent >= 0, ErrorKind::kInternal, "tensor: negative extent ", extent);
    check(!__builtin_mul_overflow(count, extent, &count), ErrorKind::kCapacity, "tensor: shape overflows");
  }
  tensor.shape = std::move(shape);
  const size_t bytes = tensor.bytes();
  if (bytes >= kHugePage) {
    tensor.owner = map_zeroed(bytes);
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
