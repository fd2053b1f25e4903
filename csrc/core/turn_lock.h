// A lock that is handed over in the order of asking, and that says how long the last turn took.
//
// Two parties work with one team of threads: an engine's steps, and the pixels of images that are drawn already. A
// plain mutex would mostly go back to whoever has just let go of it. Here the one that waits is next, and whoever holds
// the lock for a long piece of work can see that somebody waits and how long that one held it before: "as long as you,
// then it is your turn again".
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace simplear {

class TurnLock {
 public:
  using Clock = std::chrono::steady_clock;

  void lock() {
    std::unique_lock guard(mutex_);
    const uint64_t mine = num_asked_++;
    changed_.wait(guard, [&] { return num_done_ == mine; });
    started_ = Clock::now();
  }

  void unlock() {
    std::lock_guard guard(mutex_);
    last_turn_ = Clock::now() - started_;
    ++num_done_;
    if (num_asked_ != num_done_) changed_.notify_all();
  }

  // For the holder: lets the one that waits have its turn, if the holder's own has lasted as long as the one before.
  void yield_if_due() {
    {
      std::lock_guard guard(mutex_);
      if (num_asked_ == num_done_ + 1 || Clock::now() - started_ < last_turn_) return;
    }
    unlock();
    lock();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t num_asked_ = 0, num_done_ = 0;  // the turn under way is number num_done_
  Clock::time_point started_;
  Clock::duration last_turn_{};
};

}  // namespace simplear
