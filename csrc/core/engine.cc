#include "core/engine.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>
#include <utility>

#include "core/check.h"

namespace simplear {
namespace {

SchedulerLimits for_runner(SchedulerLimits limits, const StepRunner& runner) {
  limits.plans_ahead = runner.max_steps() > 1;
  return limits;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

template <class Body>
std::thread start_thread(const Body& body) {
  try {
    return std::thread(body);
  } catch (const std::system_error& error) {
    fail(ErrorKind::kCapacity, "the system refuses to start the engine's thread: ", error.what());
  }
}

}  // namespace

Engine::Engine(const SchedulerLimits& limits, int32_t num_blocks, int32_t block_size, std::shared_ptr<StepPlan> plan,
               std::shared_ptr<StepRunner> runner)
    : plan_(std::move(plan)),
      runner_(std::move(runner)),
      scheduler_(for_runner(limits, *runner_), plan_->limits, num_blocks, block_size),
      thread_(start_thread([this] { loop(); })) {}

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

void Engine::Pause::end() {
  if (std::exchange(has_ended_, true)) return;
  engine_.resume(weights_change_);
}

Engine::Stats Engine::stats() {
  std::lock_guard lock(mutex_);
  Stats stats = totals_;
  stats.num_waiting = scheduler_.num_waiting();
  stats.num_running = scheduler_.num_running();
  stats.num_blocks = scheduler_.allocator().num_blocks();
  stats.num_free_blocks = scheduler_.allocator().num_free();
  stats.drafts = scheduler_.draft_counts();
  return stats;
}

bool Engine::learns_drafts() {
  std::lock_guard lock(mutex_);
  return scheduler_.learns_drafts();
}

void Engine::set_learns_drafts(bool learns) {
  std::lock_guard lock(mutex_);
  scheduler_.set_learns_drafts(learns);
}

std::vector<ContextTable::Entry> Engine::draft_entries(int32_t min_seen) {
  std::lock_guard lock(mutex_);
  return scheduler_.context_table().telling_entries(min_seen);
}

void Engine::insert_draft_entries(std::span<const ContextTable::Entry> entries) {
  std::lock_guard lock(mutex_);
  for (const ContextTable::Entry& entry : entries) scheduler_.context_table().insert(entry);
}

void Engine::learn_picture(std::span<const int32_t> codes, int32_t width) {
  const std::vector<int32_t> known(codes.begin(), codes.end());
  DraftState state;
  state.width = width;
  state.codes = &known;
  std::lock_guard lock(mutex_);
  learn_codes(state, static_cast<int32_t>(known.size()), scheduler_.context_table());
}

void Engine::stop() {
  std::lock_guard alone(stop_mutex_);
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
    const auto start = std::chrono::steady_clock::now();
    try {
      if (!scheduler_.next(*plan_)) continue;
      stepping_ = true;
      run_batch(lock);
    } catch (const std::exception& e) {
      if (!lock.owns_lock()) lock.lock();
      runner_->abandon();
      scheduler_.fail_step(std::string("a forward step failed: ") + e.what());
    }
    stepping_ = false;
    totals_.busy_seconds += seconds_since(start);
    if (num_pauses_ > 0) idle_.notify_all();
  }
}

// The planned step and, where the runner goes ahead of the plan, those that follow from it, until the batch changes.
void Engine::run_batch(std::unique_lock<std::mutex>& lock) {
  int32_t to_begin = scheduler_.steps_ahead(*plan_), to_collect = 0, num_groups = 0;
  if (runner_->max_steps() == 1) to_begin = 1;
  bool goes_on = false;
  auto start = std::chrono::steady_clock::now();  // of the group that is collected next
  while (true) {
    // One group of steps computes while the one before it is taken over here.
    for (; to_begin > 0 && num_groups < runner_->max_groups(); ++num_groups, goes_on = true) {
      const int32_t count = std::min(to_begin, runner_->max_steps());
      lock.unlock();
      runner_->begin(*plan_, count, goes_on);
      lock.lock();
      to_begin -= count;
      to_collect += count;
    }
    if (num_groups == 0) return;
    lock.unlock();
    const DrawnSteps drawn = runner_->collect();
    lock.lock();
    --num_groups;
    scheduler_.observe(*plan_, seconds_since(start) / drawn.num_steps);
    start = std::chrono::steady_clock::now();
    if (scheduler_.wants_change() || stopping_ || num_pauses_ > 0) to_begin = 0;
    for (int32_t step = 0; step < drawn.num_steps; ++step) {
      const bool batch_is_same = commit(drawn, step);
      if (--to_collect + to_begin == 0) break;
      if (!batch_is_same) {
        // What the device drew further on is drawn again, by those who are left.
        runner_->abandon();
        return;
      }
      scheduler_.again(*plan_);
    }
  }
}

// False when somebody left the batch.
bool Engine::commit(const DrawnSteps& drawn, int32_t step) {
  const auto copy = [&](auto* to, const auto* from) {
    from += int64_t{step} * drawn.stride;
    if (to != from) std::copy_n(from, plan_->num_draws, to);
  };
  copy(plan_->token.as<int32_t>(), drawn.token);
  copy(plan_->log_prob.as<float>(), drawn.log_prob);
  totals_.num_steps += 1;
  totals_.num_tokens += plan_->num_tokens;
  const int32_t num_running = scheduler_.num_running();
  scheduler_.commit(*plan_, runner_->logits());
  return scheduler_.num_running() == num_running;
}

}  // namespace simplear
