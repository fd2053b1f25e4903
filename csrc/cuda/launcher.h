// What an op of a GPU is handed besides its arguments: where to launch, what the device is like, scratch memory.
//
// Plain host data, the same for a real device and for the simulated one (csrc/simt); csrc/cuda/launch.h launches with
// it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/check.h"

namespace simplear {

class Launcher {
 public:
  void* stream = nullptr;  // cudaStream_t
  int num_multiprocessors = 132;
  size_t max_shared_bytes = 227 * 1024;  // that one block may have
  bool is_dependent = false;             // kernels may begin before their predecessor has ended, and wait for it inside
  uint32_t delay_ns = 0;                 // spent by a kernel put before every kernel: shows who does not wait
  bool is_dry_run = false;               // launches nothing; afterwards the needs below are known

  // Memory that every op may overwrite, 256-byte aligned.
  void* workspace_memory = nullptr;
  size_t workspace_bytes = 0;
  // Zero before the first op; kernels that count leave zeros behind.
  int32_t* counter_memory = nullptr;
  size_t num_counters = 0;

  size_t workspace_bytes_needed = 0, num_counters_needed = 0;

  // Scratch for one op: until the kernels that the op launches have ended, and not a moment longer.
  template <class T>
  T* workspace(size_t count) {
    return static_cast<T*>(
        reserve(count * sizeof(T), workspace_memory, workspace_bytes, workspace_bytes_needed, "bytes of workspace"));
  }
  int32_t* counters(size_t count) {
    return static_cast<int32_t*>(
        reserve(count, counter_memory, num_counters, num_counters_needed, "counters in its workspace"));
  }

 private:
  void* reserve(size_t wanted, void* memory, size_t available, size_t& needed, const char* what) const {
    needed = std::max(needed, wanted);
    if (is_dry_run) return nullptr;
    check(wanted <= available, ErrorKind::kCapacity, "a kernel needs ", wanted, " ", what, ", the device has ",
          available);
    return memory;
  }
};

}  // namespace simplear
