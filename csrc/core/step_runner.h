// What carries out the steps that the scheduler plans.
//
// A runner on another device may begin many steps at once: as long as nobody joins or leaves the batch, each step's
// plan follows from the one before and what it drew, so the device goes on by itself and the host reads what was drawn
// later.
#pragma once

#include <deque>
#include <memory>
#include <span>

#include "core/program.h"
#include "core/step_plan.h"
#include "core/thread_pool.h"

namespace simplear {

// What `num_steps` steps drew: step i, draw d at [i * stride + d].
struct DrawnSteps {
  const int32_t* token = nullptr;
  const float* log_prob = nullptr;
  int32_t num_steps = 0, stride = 0;
};

class StepRunner {
 public:
  virtual ~StepRunner() = default;

  // How many steps may be begun at once, and how many such groups before the first is collected.
  virtual int32_t max_steps() const = 0;
  virtual int32_t max_groups() const = 0;

  // Begins the planned step and `num_steps` - 1 that follow from it; or, where `goes_on`, as many that follow from the
  // step begun last. `plan` is not looked at any more when this returns, except for what it drew.
  virtual void begin(const StepPlan& plan, int32_t num_steps, bool goes_on) = 0;

  // Waits for the group begun first and not yet collected. Valid until the next begin().
  virtual DrawnSteps collect() = 0;

  // Whole logits of the last step's rows, [num_logit_rows, V], where its plan has num_scores.
  virtual std::span<const float> logits() const = 0;

  // Forgets what was begun and not collected.
  virtual void abandon() = 0;
};

// One step at a time, by the threads of this process, at once.
class CpuRunner : public StepRunner {
 public:
  CpuRunner(std::shared_ptr<Program> program, std::shared_ptr<ThreadPool> pool, Tensor logits)
      : program_(std::move(program)), pool_(std::move(pool)), logits_(std::move(logits)) {}

  int32_t max_steps() const override { return 1; }
  int32_t max_groups() const override { return 1; }
  void begin(const StepPlan& plan, int32_t, bool) override {
    program_->run(plan, *pool_);
    drawn_ = {plan.token.as<int32_t>(), plan.log_prob.as<float>(), 1, plan.num_draws};
  }
  DrawnSteps collect() override { return drawn_; }
  std::span<const float> logits() const override { return {logits_.as<float>(), static_cast<size_t>(logits_.size())}; }
  void abandon() override {}

 private:
  std::shared_ptr<Program> program_;
  std::shared_ptr<ThreadPool> pool_;
  Tensor logits_;
  DrawnSteps drawn_;
};

}  // namespace simplear
