// A recorded forward pass for a device: as core/program.h, but its calls are enqueued on a stream and not run.
//
// Pointers are fixed at recording; sizes that change are bound to the counts of a step by name, and fixed at last where
// a graph is captured from it.
#pragma once

#include <memory>
#include <vector>

#include "core/program.h"
#include "cuda/driver.h"

namespace simplear {

class DeviceProgram {
 public:
  struct Call {
    const OpImpl* op;  // of the host, on the simulated device
    std::vector<std::byte> params;
    std::vector<Program::Binding> bindings;
    std::vector<std::shared_ptr<void>> lenders;  // kept alive as long as the program
  };

  // pool: what the simulated device computes with.
  DeviceProgram(std::shared_ptr<Driver> driver, std::shared_ptr<ThreadPool> pool)
      : driver_(std::move(driver)), pool_(std::move(pool)) {}

  const std::shared_ptr<Driver>& driver() const { return driver_; }
  void add(Call call) { calls_.push_back(std::move(call)); }

  // Enqueues all calls with these sizes.
  void enqueue(const StepCounts& counts, Driver::Stream* stream);

  // For tests and benchmarks of ops whose sizes are fixed: all calls once, now; and the seconds that one launch of a
  // graph of them takes, `repeats` times over.
  void run();
  double time(int32_t repeats);

 private:
  std::shared_ptr<Driver> driver_;
  std::shared_ptr<ThreadPool> pool_;
  std::vector<Call> calls_;
};

}  // namespace simplear
