#include "cuda/device_program.h"

#include <chrono>
#include <cstring>
#include <mutex>

namespace simplear {

DeviceProgram::DeviceProgram(std::shared_ptr<Driver> driver, std::shared_ptr<ThreadPool> pool)
    : driver_(std::move(driver)), pool_(std::move(pool)) {
  const DeviceProperties& properties = driver_->properties();
  launcher_.num_multiprocessors = properties.num_multiprocessors;
  launcher_.max_shared_bytes = properties.max_shared_bytes;
  launcher_.is_dependent = true;
}

void DeviceProgram::set_overlap(bool is_dependent, uint32_t delay_ns) {
  launcher_.is_dependent = is_dependent;
  launcher_.delay_ns = delay_ns;
}

const std::byte* DeviceProgram::bind(Call& call, const StepCounts& counts) {
  for (const Program::Binding& binding : call.bindings) {
    const int32_t count = counts.at(binding.count);
    std::memcpy(call.params.data() + binding.offset, &count, sizeof(count));
  }
  return call.params.data();
}

void DeviceProgram::reserve(const std::vector<StepCounts>& sizes) {
  launcher_.is_dry_run = true;
  for (Call& call : calls_)
    for (const StepCounts& counts : sizes)
      if (call.cuda_op != nullptr) call.cuda_op->run(bind(call, counts), launcher_);
  launcher_.is_dry_run = false;
  const auto bytes = static_cast<int64_t>(launcher_.workspace_bytes_needed);
  const auto count = static_cast<int64_t>(launcher_.num_counters_needed);
  if (launcher_.workspace_bytes < launcher_.workspace_bytes_needed)
    workspace_ = device_zeros(driver_, {bytes}, DType::kUInt8);
  if (launcher_.num_counters < launcher_.num_counters_needed) counters_ = device_zeros(driver_, {count}, DType::kInt32);
  launcher_.workspace_memory = workspace_.data;
  launcher_.workspace_bytes = workspace_.data ? workspace_.bytes() : 0;
  launcher_.counter_memory = counters_.as<int32_t>();
  launcher_.num_counters = counters_.data ? static_cast<size_t>(counters_.size()) : 0;
}

Driver::Function* DeviceProgram::load(const std::string& image, const std::string& name) {
  Handle<Driver::Module>& module = modules_[image];
  if (!module) module = {driver_->load_module(std::as_bytes(std::span(image))), {driver_}};
  return driver_->function(module.get(), name);
}

void DeviceProgram::launch(const Call& call, const StepCounts& counts, Driver::Stream* stream) {
  const auto found = call.compiled.find(counts);
  check(found != call.compiled.end(), ErrorKind::kInternal, "device program: no kernel was compiled for a step of ",
        counts.num_tokens, " rows and ", counts.num_draws, " draws");
  for (const CompiledLaunch& launch : found->second) {
    std::vector<void*> arguments;
    for (const std::string& bytes : launch.arguments) arguments.push_back(const_cast<char*>(bytes.data()));
    driver_->launch(launch.function, launch.shape, arguments, stream);
  }
}

void DeviceProgram::enqueue(const StepCounts& counts, Driver::Stream* stream) {
  launcher_.stream = reinterpret_cast<void*>(driver_->native_handle(stream));
  // Launches of CUDA ops do not pass through the driver, and go to the thread's device.
  driver_->on_device([&] {
    for (Call& call : calls_) {
      bind(call, counts);
      if (call.cuda_op != nullptr) call.cuda_op->run(call.params.data(), launcher_);
      else if (call.host_op == nullptr) launch(call, counts, stream);
      else enqueue_on_host(call, stream);
    }
  });
}

void DeviceProgram::enqueue_on_host(const Call& call, Driver::Stream* stream) {
  driver_->enqueue(
      [op = call.host_op, params = call.params, pool = pool_] {
        std::lock_guard turn(pool->turns());
        op->run(params.data(), *pool);
      },
      stream);
}

void DeviceProgram::run() {
  const Handle<Driver::Stream> stream = make_stream(driver_);
  reserve({{}});
  enqueue({}, stream.get());
  driver_->synchronize(stream.get());
}

double DeviceProgram::time(int32_t repeats) {
  const Handle<Driver::Stream> stream = make_stream(driver_);
  reserve({{}});
  const Handle<Driver::Graph> graph = capture(driver_, stream.get(), [&] {
    for (int32_t i = 0; i < repeats; ++i) enqueue({}, stream.get());
  });
  // The first launch is not counted.
  for (const bool is_counted : {false, true}) {
    const auto start = std::chrono::steady_clock::now();
    driver_->launch(graph.get(), stream.get());
    driver_->synchronize(stream.get());
    if (is_counted) return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return 0;
}

}  // namespace simplear
