#include "core/program.h"

#include <chrono>
#include <cstring>

namespace simplear {

void Program::run(const StepPlan& plan, ThreadPool& pool) {
  using Clock = std::chrono::steady_clock;
  for (Call& call : calls_) {
    for (const Binding& binding : call.bindings) {
      const int32_t count = plan.count(binding.count);
      std::memcpy(call.params.data() + binding.offset, &count, sizeof(count));
    }
    // One op at a time, so that pixels of a finished image can be decoded between the ops of a step.
    std::lock_guard lock(pool.op_mutex());
    const auto start = timing_ ? Clock::now() : Clock::time_point{};
    call.op->run(call.params.data(), pool);
    if (timing_) call.seconds += std::chrono::duration<double>(Clock::now() - start).count();
  }
}

void Program::set_timing(bool on) {
  timing_ = on;
  for (Call& call : calls_) call.seconds = 0;
}

}  // namespace simplear
