// The runner of a device: a step is one launch of a graph that was recorded for its sizes.
//
// The first step of a batch takes its plan from the host, in one copy. The step's last op, `verify_drafts`, hands the
// drawn codes over and turns the plan into the next step's, so as long as the batch stays as it is the host launches
// step after step and waits for none. What was drawn is kept for each step in a short history, which the host reads a
// group of steps at a time, while the next group is under way.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <map>

#include "core/step_runner.h"
#include "cuda/buckets.h"
#include "cuda/device_program.h"

namespace simplear {

// Memory of the device that lives from step to step, besides what the plan holds.
struct StepHistory {
  Tensor step;             // [1] int32: entry of the history that the next step writes
  Tensor token, log_prob;  // [2 * steps of a group, max_draws] int32, float32
};

class GraphRunner : public StepRunner {
 public:
  // plan: on the device, where the program's ops find it. logits: on the device, [max_logit_rows, V].
  GraphRunner(std::shared_ptr<DeviceProgram> program, std::shared_ptr<StepPlan> plan, StepHistory history,
              Tensor logits, int32_t visual_offset);
  ~GraphRunner() override;

  int32_t max_steps() const override { return static_cast<int32_t>(history_.token.shape[0]) / kMaxGroups; }
  int32_t max_groups() const override { return kMaxGroups; }
  void begin(const StepPlan& plan, int32_t num_steps, bool goes_on) override;
  DrawnSteps collect() override;
  std::span<const float> logits() const override;
  void abandon() override;

  // Records the graph of a step of this size now instead of when it first comes up.
  Driver::Graph* record(const StepCounts& bucket);
  int32_t num_graphs() const { return static_cast<int32_t>(graphs_.size()); }
  int64_t num_uploads() const { return num_uploads_; }  // of plans: how often the device waited for the host

  uint64_t native_stream() const { return driver_->native_handle(stream_.get()); }

 private:
  static constexpr int32_t kMaxGroups = 2;

  struct Group {
    int32_t num_steps, half;  // of the history
  };

  void upload(const StepPlan& plan);

  const std::shared_ptr<Driver> driver_;
  const std::shared_ptr<DeviceProgram> program_;
  const std::shared_ptr<StepPlan> plan_;
  const StepHistory history_;
  const Tensor logits_;
  const int32_t visual_offset_;  // text id of code 0
  const Handle<Driver::Stream> stream_;

  const std::array<Handle<Driver::Event>, kMaxGroups> done_;  // by half of the history

  // Pinned: what is copied up and down while the host goes on.
  StepPlan staged_;
  StepPlan idle_;      // padding alone, to record on
  Tensor first_step_;  // [2] where the history's halves begin
  Tensor drawn_token_, drawn_log_prob_, host_logits_;

  std::map<StepCounts, Handle<Driver::Graph>> graphs_;
  StepCounts counts_;               // of the steps under way
  Driver::Graph* graph_ = nullptr;  // their graph; none: op by op
  std::deque<Group> groups_;        // begun and not collected
  int32_t half_ = 0;
  std::atomic<int64_t> num_uploads_ = 0;
};

}  // namespace simplear
