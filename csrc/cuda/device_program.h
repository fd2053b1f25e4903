// A recorded forward pass for a device: as core/program.h, but its calls are enqueued on a stream and not run.
//
// Pointers are fixed at recording; sizes that change are bound to the counts of a step by name, and fixed at last where
// a graph is captured from it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/program.h"
#include "cuda/driver.h"
#include "cuda/op.h"

namespace simplear {

class DeviceProgram {
 public:
  // A kernel that was compiled elsewhere (by Triton), with nothing left to decide but when.
  struct CompiledLaunch {
    Driver::Function* function;
    KernelShape shape;
    std::vector<std::string> arguments;  // the bytes of each
  };
  struct Call {
    // One of the three: a kernel; on the simulated device an implementation of the host; launches for each size.
    const CudaOp* cuda_op;
    const OpImpl* host_op;
    std::map<StepCounts, std::vector<CompiledLaunch>> compiled;
    std::vector<std::byte> params;
    std::vector<Program::Binding> bindings;
    std::vector<std::shared_ptr<void>> lenders;  // kept alive as long as the program
  };

  // pool: what the simulated device computes with.
  DeviceProgram(std::shared_ptr<Driver> driver, std::shared_ptr<ThreadPool> pool);

  const std::shared_ptr<Driver>& driver() const { return driver_; }
  void add(Call call) { calls_.push_back(std::move(call)); }

  // A kernel of a module that lives as long as the program; the same image is loaded once.
  Driver::Function* load(const std::string& image, const std::string& name);

  // Reserves the scratch memory that the calls need with any of these sizes, before anything is enqueued with them.
  void reserve(const std::vector<StepCounts>& sizes);

  // Kernels may begin before the one before them has ended, and wait for it inside; each may be put behind an idle
  // kernel of `delay_ns`, which shows who does not wait. For programs that are recorded or run afterwards.
  void set_overlap(bool is_dependent, uint32_t delay_ns);

  // Enqueues all calls with these sizes.
  void enqueue(const StepCounts& counts, Driver::Stream* stream);

  // For tests and benchmarks of ops whose sizes are fixed: all calls once, now; and the seconds that one launch of a
  // graph of them takes, `repeats` times over.
  void run();
  double time(int32_t repeats);

 private:
  const std::byte* bind(Call& call, const StepCounts& counts);
  void launch(const Call& call, const StepCounts& counts, Driver::Stream* stream);
  void enqueue_on_host(const Call& call, Driver::Stream* stream);

  std::shared_ptr<Driver> driver_;
  std::shared_ptr<ThreadPool> pool_;
  std::map<std::string, Handle<Driver::Module>> modules_;  // by image
  std::vector<Call> calls_;
  Launcher launcher_;
  Tensor workspace_, counters_;
};

}  // namespace simplear
