// A dense row-major tensor that either owns its memory or borrows somebody else's.
//
// Borrowing keeps the lender alive through `owner` (a NumPy array, a mapped file, a torch parameter). Nothing here
// knows about Python; the bindings turn a lender into a shared_ptr whose deleter lets go of it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace simplear {

// Where memory is; kinds have DLPack's numbers. The simulated device (csrc/cuda) is for tests, and an "extension
// device" to DLPack.
enum class DeviceKind : int32_t { kCpu = 1, kCuda = 2, kSimulated = 12 };

struct DeviceId {
  DeviceKind kind = DeviceKind::kCpu;
  int32_t index = 0;
  bool is_host() const { return kind == DeviceKind::kCpu; }
  bool operator==(const DeviceId&) const = default;
};

std::string name_of(DeviceId device);  // "cpu", "cuda:1", "simulated:0"

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  bool read_only = false;
  DeviceId device;  // only code for that device may touch `data`
  std::shared_ptr<void> owner;

  int64_t size() const {
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;
    return n;
  }
  size_t bytes() const { return static_cast<size_t>(size()) * size_of(dtype); }

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }

  // Zero-filled, 64-byte aligned; large ones come from huge pages where the kernel grants them, and pages that are
  // never touched cost nothing.
  static Tensor zeros(std::vector<int64_t> shape, DType dtype);
};

// Throws kCapacity where a tensor of this shape would have more bytes than can be counted.
void check_shape(const std::vector<int64_t>& shape, DType dtype);

}  // namespace simplear
