// Copies between a device and memory of the host that is not pinned, by way of memory that is.
//
// Pinning takes the system longer than copying a picture does, so what was pinned once is kept: two pieces of at most
// 16 MB.
#pragma once

#include <memory>
#include <mutex>

#include "cuda/driver.h"

namespace simplear {

class Staging {
 public:
  explicit Staging(std::shared_ptr<Driver> driver) : driver_(std::move(driver)) {}
  ~Staging();

  // Between tensors of equal size, one of the host and one of the device, in the order of `stream`; waits until it is
  // done. May be called by several threads, which take turns.
  void transfer(const Tensor& from, const Tensor& to, Driver::Stream* stream);

 private:
  struct Piece {
    Tensor memory;
    Handle<Driver::Event> done;
    void* to = nullptr;  // where on the host its bytes go when they have come
    size_t count = 0;    // bytes under way
  };

  void finish(Piece& piece);

  const std::shared_ptr<Driver> driver_;
  std::mutex mutex_;
  Piece pieces_[2];
};

}  // namespace simplear
