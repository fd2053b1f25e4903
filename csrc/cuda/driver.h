// The few things that the engine asks of a GPU, and no more: memory, copies, streams, events, graphs, modules.
//
// Two implementations: CUDA (cuda_driver.cc, where nvcc was there to build it), and a device in host memory for tests
// (simulated_driver.h). Everything above this line is the same code on both, so all of it is tested without a GPU. What
// is enqueued on a stream runs in order, some time later, and nothing here waits unless it says so. Failures are
// Errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace simplear {

struct DeviceProperties {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  size_t total_memory = 0;   // bytes
  int num_multiprocessors = 0;
  size_t max_shared_bytes = 0;  // that one block may have
  int driver_version = 0,
      runtime_version = 0;  // 1000 * major + 10 * minor; what the driver can and what this build needs
};

// How a kernel of a loaded module is launched.
struct KernelShape {
  uint32_t grid[3] = {1, 1, 1};
  uint32_t threads = 1;
  uint32_t shared_bytes = 0;
};

class Driver {
 public:
  // Whatever the implementation keeps behind them.
  struct Stream;
  struct Event;
  struct Graph;
  struct Module;
  struct Function;

  virtual ~Driver() = default;

  virtual DeviceId id() const = 0;
  virtual const DeviceProperties& properties() const = 0;
  virtual size_t free_memory() = 0;

  // Device memory, zero-filled; kCapacity where there is too little. 256-byte aligned.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* memory) = 0;
  // Host memory that the device can copy from and to while the host goes on ("pinned").
  virtual void* allocate_host(size_t bytes) = 0;
  virtual void release_host(void* memory) = 0;

  virtual Stream* create_stream() = 0;
  virtual void destroy(Stream* stream) = 0;
  virtual void synchronize(Stream* stream) = 0;  // waits
  // The CUDA stream behind it, for others who compute on the device, or such a stream of theirs as one of ours.
  virtual uint64_t native_handle(Stream* stream) = 0;
  virtual Stream* adopt_stream(uint64_t native_handle) = 0;

  // Either side may be device memory; host memory must be pinned.
  virtual void copy(void* to, const void* from, size_t bytes, Stream* stream) = 0;

  virtual Event* create_event() = 0;
  virtual void destroy(Event* event) = 0;
  virtual void record(Event* event, Stream* stream) = 0;
  virtual void wait(Stream* stream, Event* event) = 0;  // what is enqueued on `stream` later comes after the event
  virtual void synchronize(Event* event) = 0;           // the host waits

  // Between the two, what is enqueued on `stream` does not run but becomes part of the graph.
  virtual void begin_capture(Stream* stream) = 0;
  virtual Graph* end_capture(Stream* stream) = 0;
  virtual void launch(Graph* graph, Stream* stream) = 0;
  virtual void destroy(Graph* graph) = 0;

  // A compiled kernel (a cubin), as Triton makes them.
  virtual Module* load_module(std::span<const std::byte> image) = 0;
  virtual void destroy(Module* module) = 0;
  virtual Function* function(Module* module, const std::string& name) = 0;
  virtual void launch(Function* function, const KernelShape& shape, std::span<void* const> arguments,
                      Stream* stream) = 0;

  // Calls `work` with this device as the thread's own, which only CUDA's runtime knows.
  virtual void on_device(const std::function<void()>& work) { work(); }

  // Host code in the place of a kernel, on the simulated device only.
  virtual void enqueue(std::function<void()> work, Stream* stream) = 0;
};

// Which devices of a kind there are, and why there are none.
struct DeviceList {
  std::vector<DeviceProperties> devices;
  std::string problem;
  bool is_out_of_order = false;  // there is a driver, and so probably a device, but they do not work with this build
};
DeviceList cuda_devices();

// The driver of a device, one for all who ask. kUnsupported where there is no such device.
std::shared_ptr<Driver> open_device(DeviceId id);

// Handles that are destroyed with their owner.
template <class T>
struct Destroy {
  std::shared_ptr<Driver> driver;
  void operator()(T* handle) const { driver->destroy(handle); }
};
template <class T>
using Handle = std::unique_ptr<T, Destroy<T>>;

inline Handle<Driver::Stream> make_stream(const std::shared_ptr<Driver>& driver) {
  return {driver->create_stream(), {driver}};
}
inline Handle<Driver::Event> make_event(const std::shared_ptr<Driver>& driver) {
  return {driver->create_event(), {driver}};
}

// The graph of what `enqueue` puts on `stream`.
Handle<Driver::Graph> capture(const std::shared_ptr<Driver>& driver, Driver::Stream* stream,
                              const std::function<void()>& enqueue);

// Zero-filled tensors in the device's memory, or in pinned memory of the host.
Tensor device_zeros(const std::shared_ptr<Driver>& driver, std::vector<int64_t> shape, DType dtype);
Tensor pinned_zeros(const std::shared_ptr<Driver>& driver, std::vector<int64_t> shape, DType dtype);

// `later` does what is enqueued on it from now on after all that has been enqueued on `earlier` so far.
void order(const std::shared_ptr<Driver>& driver, Driver::Stream* earlier, Driver::Stream* later);

}  // namespace simplear
