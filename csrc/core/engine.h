// The engine thread: plan, run, commit, until there is nothing left to do.
//
// Clients submit requests and wait for them from any thread; nothing here touches Python. An exception in a step ends
// the requests of that step and the engine stays up.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "core/scheduler.h"
#include "core/step_runner.h"

namespace simplear {

class Engine {
 public:
  struct Stats {
    int64_t num_steps, num_tokens;  // since the start
    int32_t num_waiting, num_running, num_blocks, num_free_blocks;
    double busy_seconds;  // spent in steps
    DraftCounts drafts;   // since the start
  };

  Engine(const SchedulerLimits& limits, int32_t num_blocks, int32_t block_size, std::shared_ptr<StepPlan> plan,
         std::shared_ptr<StepRunner> runner);
  ~Engine();

  void submit(std::shared_ptr<Request> request);
  void cancel(Request& request);

  // Waits until the request ended or `seconds` have passed; true when it ended.
  static bool wait(Request& request, double seconds);

  // While one of these lives no step runs: weights may be rewritten in place, after which cached prompts are of no use.
  class Pause {
   public:
    Pause(Engine& engine, bool weights_change) : engine_(engine), weights_change_(weights_change) { engine.pause(); }
    ~Pause() { end(); }
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;
    void end();

   private:
    Engine& engine_;
    const bool weights_change_;
    bool has_ended_ = false;
  };

  Stats stats();

  // Whether pictures drawn from now on are learnt from; a measurement may want each of them to find the same table.
  bool learns_drafts();
  void set_learns_drafts(bool learns);

  // What was learnt about the codes of pictures, for a later engine with the same model.
  std::vector<ContextTable::Entry> draft_entries(int32_t min_seen);
  void insert_draft_entries(std::span<const ContextTable::Entry> entries);
  // From a picture that was drawn elsewhere: codes in raster order, `width` in a row.
  void learn_picture(std::span<const int32_t> codes, int32_t width);

  // Ends all requests and joins the thread; further submits fail. Whoever calls it second waits for the first.
  void stop();

 private:
  void pause();
  void resume(bool weights_changed);
  void loop();
  void run_batch(std::unique_lock<std::mutex>& lock);
  bool commit(const DrawnSteps& drawn, int32_t step);

  std::shared_ptr<StepPlan> plan_;
  std::shared_ptr<StepRunner> runner_;

  std::mutex stop_mutex_;  // held by whoever joins the thread
  std::mutex mutex_;       // guards the scheduler and the flags
  std::condition_variable wake_, idle_;
  Scheduler scheduler_;
  bool stepping_ = false, stopping_ = false, stopped_ = false;
  int num_pauses_ = 0;
  Stats totals_{};
  std::thread thread_;
};

}  // namespace simplear
