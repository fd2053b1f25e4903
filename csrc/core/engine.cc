#include "core/engine.h"

#include <chrono>

namespace simplear {

Engine::Engine(const SchedulerLimits& limits, int32_t num_blocks, int32_t block_size, std::shared_ptr<StepPlan> plan,
               std::shared_ptr<Program> program, std::shared_ptr<ThreadPool> pool, Tensor logits)
    : plan_(std::move(plan)),
      program_(std::move(program)),
      pool_(std::move(pool)),
      logits_(std::move(logits)),
      scheduler_(limits, plan_->limits, num_blocks, block_size),
      thread_([this] { loop(); }) {}

Engine::~Engine() { stop(); }

void Engine::submit(std::shared_ptr<Request> request) {
  {
    std::lock_guard lock(mutex_);
    check(!stopping_, ErrorKind::kInvalidRequest, "the engine is closed: make a new one");
    scheduler_.enqueue(std::move(request));
  }
  wake_.notify_one();
}

void Engine::cancel(Request& request) {
  request.cancel_requested = true;
  wake_.notify_one();
}

bool Engine::wait(Request& request, double seconds) {
  std::unique_lock lock(request.mutex);
  return request.changed.wait_for(lock, std::chrono::duration<double>(seconds), [&] {
    return request.status == RequestStatus::kFinished || request.status == RequestStatus::kFailed;
  });
}

void Engine::pause() {
  std::unique_lock lock(mutex_);
  ++num_pauses_;
  idle_.wait(lock, [&] { return !stepping_; });
}

void Engine::resume(bool weights_changed) {
  {
    std::lock_guard lock(mutex_);
    if (weights_changed) scheduler_.forget_prefixes();
    --num_pauses_;
  }
  wake_.notify_one();
}

Engine::Stats Engine::stats() {
  std::lock_guard lock(mutex_);
  Stats stats = totals_;
  stats.num_waiting = scheduler_.num_waiting();
  stats.num_running = scheduler_.num_running();
  stats.num_blocks = scheduler_.allocator().num_blocks();
  stats.num_free_blocks = scheduler_.allocator().num_free();
  return stats;
}

void Engine::stop() {
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return;
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
  std::lock_guard lock(mutex_);
  scheduler_.fail_all(ErrorKind::kCancelled, "the engine was closed");
  stopped_ = true;
}

void Engine::loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return stopping_ || (num_pauses_ == 0 && !scheduler_.is_idle()); });
    if (stopping_) return;
    if (!scheduler_.next(*plan_)) continue;
    stepping_ = true;
    lock.unlock();
    const auto start = std::chrono::steady_clock::now();
    std::string error;
    try {
      program_->run(*plan_, *pool_);
    } catch (const std::exception& e) {
      error = e.what();
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    lock.lock();
    stepping_ = false;
    totals_.num_steps += 1;
    totals_.num_tokens += plan_->num_tokens;
    totals_.busy_seconds += took.count();
    if (error.empty()) scheduler_.commit(*plan_, {logits_.as<float>(), static_cast<size_t>(logits_.size())});
    else scheduler_.fail_step("a forward step failed: " + error);
    if (num_pauses_ > 0) idle_.notify_all();
  }
}

}  // namespace simplear
