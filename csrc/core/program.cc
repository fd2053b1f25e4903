#include "core/program.h"

#include <chrono>
#include <cstring>
#include <mutex>

namespace simplear {

void Program::run(const StepPlan& plan, ThreadPool& pool, Turns turns) {
  using Clock = std::chrono::steady_clock;
  std::lock_guard turn(pool.turns());
  for (Call& call : calls_) {
    for (const Binding& binding : call.bindings) {
      const int32_t count = plan.at(binding.count);
      std::memcpy(call.params.data() + binding.offset, &count, sizeof(count));
    }
    if (turns == Turns::kShared) pool.turns().yield_if_due();
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
