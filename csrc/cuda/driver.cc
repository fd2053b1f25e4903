#include "cuda/driver.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>

#include "core/check.h"
#include "cuda/cuda_driver.h"
#include "cuda/simulated_driver.h"

namespace simplear {
std::shared_ptr<Driver> open_device(DeviceId id) {
  static std::mutex mutex;
  static std::map<std::pair<DeviceKind, int32_t>, std::weak_ptr<Driver>> open;
  std::lock_guard lock(mutex);
  std::weak_ptr<Driver>& known = open[{id.kind, id.index}];
  std::shared_ptr<Driver> driver = known.lock();
  if (driver) return driver;
  check(!id.is_host(), ErrorKind::kInternal, "open_device: the host is no device");
  known = driver = id.kind == DeviceKind::kSimulated ? make_simulated_driver(id) : make_cuda_driver(id);
  return driver;
}

Handle<Driver::Graph> capture(const std::shared_ptr<Driver>& driver, Driver::Stream* stream,
                              const std::function<void()>& enqueue) {
  driver->begin_capture(stream);
  try {
    enqueue();
  } catch (...) {
    // The stream is to be of use again; what went wrong first is what counts.
    try {
      driver->destroy(driver->end_capture(stream));
    } catch (const Error&) {
    }
    throw;
  }
  return {driver->end_capture(stream), {driver}};
}

Tensor device_zeros(const std::shared_ptr<Driver>& driver, std::vector<int64_t> shape, DType dtype) {
  check_shape(shape, dtype);
  Tensor tensor;
  tensor.shape = std::move(shape);
  tensor.dtype = dtype;
  tensor.device = driver->id();
  tensor.data = driver->allocate(tensor.bytes());
  tensor.owner = std::shared_ptr<void>(tensor.data, [driver](void* memory) { driver->release(memory); });
  return tensor;
}

Tensor pinned_zeros(const std::shared_ptr<Driver>& driver, std::vector<int64_t> shape, DType dtype) {
  check_shape(shape, dtype);
  Tensor tensor;
  tensor.shape = std::move(shape);
  tensor.dtype = dtype;
  tensor.data = driver->allocate_host(tensor.bytes());
  std::memset(tensor.data, 0, tensor.bytes());
  tensor.owner = std::shared_ptr<void>(tensor.data, [driver](void* memory) { driver->release_host(memory); });
  return tensor;
}

void order(const std::shared_ptr<Driver>& driver, Driver::Stream* earlier, Driver::Stream* later) {
  const Handle<Driver::Event> event = make_event(driver);
  driver->record(event.get(), earlier);
  driver->wait(later, event.get());
}

}  // namespace simplear
