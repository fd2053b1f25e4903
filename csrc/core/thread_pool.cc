#include "core/thread_pool.h"

#include <sched.h>

#include <cstdlib>
#include <system_error>
#include <utility>

#include "core/check.h"

namespace simplear {
namespace {

// About 50 us on a current core: longer than the gap between ops, shorter than anything a neighbour would notice.
constexpr int kSpins = 2000;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads), workers_(num_threads - 1), scratch_(num_threads), parts_(num_threads) {
  try {
    for (int t = 1; t < num_threads_; ++t) workers_[t - 1].thread = std::thread([this, t] { work(t); });
  } catch (const std::system_error& error) {
    stop();
    fail(ErrorKind::kCapacity, "threads: the system refuses to start ", num_threads, ": ", error.what());
  }
}

ThreadPool::~ThreadPool() {
  stop();
  for (Scratch& scratch : scratch_) std::free(scratch.memory);
}

void ThreadPool::stop() {
  stopping_ = true;
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (Worker& worker : workers_)
    if (worker.thread.joinable()) worker.thread.join();
}

void ThreadPool::run(Function function, void* context) {
  if (num_threads_ == 1) {
    function(context, 0, 1);
    return;
  }
  function_ = function;
  context_ = context;
  running_.store(num_threads_ - 1, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  call(0);
  for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) {
    relax();
    // A worker that lost its core needs ours.
    if (spins > kSpins) sched_yield();
  }
  if (error_ != nullptr) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::share(int64_t items, int64_t grain, RangeFunction function, void* context, LeaveFunction leave) {
  struct Leaving {
    LeaveFunction leave;
    ~Leaving() {
      if (leave != nullptr) leave();
    }
  };
  if (num_threads_ == 1 || items < 2 * grain) {
    const Leaving leaving{leave};
    if (items > 0) function(context, 0, items, 0);
    return;
  }
  struct Shared {
    WorkParts& parts;
    int64_t grain;
    RangeFunction function;
    void* context;
    LeaveFunction leave;
  } shared{parts_, grain, function, context, leave};
  parts_.deal(items);
  run(
      [](void* opaque, int thread, int) {
        const Shared& s = *static_cast<const Shared*>(opaque);
        const Leaving leaving{s.leave};
        for (auto r = s.parts.take(thread, s.grain); r.begin < r.end; r = s.parts.take(thread, s.grain))
          s.function(s.context, r.begin, r.end, thread);
      },
      &shared);
}

void ThreadPool::call(int thread) {
  try {
    function_(context_, thread, num_threads_);
  } catch (...) {
    std::lock_guard lock(error_mutex_);
    if (error_ == nullptr) error_ = std::current_exception();
  }
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    int spins = 0;
    while (epoch_.load(std::memory_order_acquire) == seen) {
      if (++spins < kSpins) relax();
      else epoch_.wait(seen, std::memory_order_acquire);
    }
    ++seen;
    if (stopping_) return;
    call(thread);
    running_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

void* ThreadPool::scratch(int thread, size_t bytes) {
  Scratch& scratch = scratch_[thread];
  if (scratch.bytes < bytes) {
    std::free(scratch.memory);
    scratch.bytes = (bytes + 4095) / 4096 * 4096;
    scratch.memory = std::aligned_alloc(4096, scratch.bytes);
    if (scratch.memory == nullptr) {
      scratch.bytes = 0;
      fail(ErrorKind::kCapacity, "out of memory: the system refused ", bytes, " bytes of scratch");
    }
  }
  return scratch.memory;
}

}  // namespace simplear
