// A fixed team of threads with a cheap barrier.
//
// Work is split by index, into one part for each thread; of ops whose items take long, a thread that is done helps
// another (work_parts.h). Workers spin briefly for the next call (the gap between two ops of a step is microseconds),
// then park.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/turn_lock.h"
#include "core/work_parts.h"

namespace simplear {

class ThreadPool {
 public:
  using Function = void (*)(void* context, int thread, int num_threads);

  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return num_threads_; }

  // Held by whoever computes with these threads, for one op or for many: run() and scratch() serve one op at a time.
  TurnLock& turns() { return turns_; }

  // Calls function(context, t, size()) once for each t; the caller is thread 0. When all of them have ended, throws
  // what the first that failed threw.
  void run(Function function, void* context);

  using RangeFunction = void (*)(void* context, int64_t begin, int64_t end, int thread);

  using LeaveFunction = void (*)();

  // Calls function(context, begin, end, t) until all of [0, items) is done; threads share what is left (work_parts.h),
  // a grain of it at least. Fewer than two grains are the caller's alone. Each thread that took part calls leave(),
  // where given, at its end.
  void share(int64_t items, int64_t grain, RangeFunction function, void* context, LeaveFunction leave = nullptr);

  // Private memory of one thread, kept between calls; page-aligned.
  void* scratch(int thread, size_t bytes);

 private:
  void stop();
  void work(int thread);
  void call(int thread);

  struct alignas(64) Worker {
    std::thread thread;
  };
  struct alignas(64) Scratch {
    void* memory = nullptr;
    size_t bytes = 0;
  };

  const int num_threads_;
  TurnLock turns_;
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<int> running_{0};
  Function function_ = nullptr;
  void* context_ = nullptr;
  std::atomic<bool> stopping_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;
  std::vector<Worker> workers_;
  std::vector<Scratch> scratch_;
  WorkParts parts_;
};

}  // namespace simplear
