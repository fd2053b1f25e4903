#include "cuda/device_program.h"

#include <chrono>
#include <cstring>
#include <mutex>

namespace simplear {

void DeviceProgram::enqueue(const StepCounts& counts, Driver::Stream* stream) {
  for (Call& call : calls_) {
    for (const Program::Binding& binding : call.bindings) {
      const int32_t count = counts.at(binding.count);
      std::memcpy(call.params.data() + binding.offset, &count, sizeof(count));
    }
    driver_->enqueue(
        [op = call.op, params = call.params, pool = pool_] {
          std::lock_guard turn(pool->turns());
          op->run(params.data(), *pool);
        },
        stream);
  }
}

void DeviceProgram::run() {
  const Handle<Driver::Stream> stream = make_stream(driver_);
  enqueue({}, stream.get());
  driver_->synchronize(stream.get());
}

double DeviceProgram::time(int32_t repeats) {
  const Handle<Driver::Stream> stream = make_stream(driver_);
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
