// Who takes part in the next step, and with how many tokens.
//
// The unit is a guidance pair: two rows (conditional, unconditional) that share every sampled token; guidance 1 and
// scoring need one row only. A request is admitted in order of arrival, when a slot and all KV blocks that it will ever
// need are free, and then runs to its end. In a step, images that are being drawn go first with one token a row; the
// rest of the budget goes to prompts, in chunks.
//
// A pair is sampled in the step that computes the last known token of both its rows. Behind that token a row may carry
// drafts: each is redrawn with its position's own noise, and the longest run that comes out equal is kept together with
// the token after it (draft.h). How many drafts a step carries changes its cost and never its result. Not thread-safe:
// the engine guards it.
#pragma once

#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "core/block_allocator.h"
#include "core/request.h"
#include "core/step_cost.h"
#include "core/step_plan.h"

namespace simplear {

struct SchedulerLimits {
  int32_t max_queue = 256;    // requests that wait
  int32_t max_positions = 0;  // longest sequence that the model knows
  int32_t num_codes = 0;      // visual vocabulary
  int32_t visual_offset = 0;  // text id of code 0
  bool plans_ahead = false;   // steps are begun before the ones before them are committed, as steps_ahead() allows
};

class Scheduler {
 public:
  Scheduler(const SchedulerLimits& limits, const StepLimits& step_limits, int32_t num_blocks, int32_t block_size);

  // Throws kInvalidRequest, kCapacity (could never run) or kQueueFull.
  void enqueue(std::shared_ptr<Request> request);

  // Ends cancelled requests, admits waiting ones and fills the plan. False when there is nothing to do.
  bool next(StepPlan& plan);

  // For how many steps, the planned one included, the batch stays as it is, whatever they draw: nobody reads a prompt
  // and nobody comes to the end of its image. Such steps need no new plan from here: `verify_drafts` derives each from
  // the one before.
  int32_t steps_ahead(const StepPlan& plan) const;

  // Whether the batch should change although it could go on: somebody left, or waits and finds a free slot.
  bool wants_change() const;

  // Plans the next of these steps: the batch of the last one, nobody joins and nobody leaves.
  void again(StepPlan& plan);

  // Takes the step's sampled tokens over; requests that end free their blocks at once.
  void commit(const StepPlan& plan, std::span<const float> logits);

  // Notes how long the step took that `plan` describes; before commit().
  void observe(const StepPlan& plan, double seconds);

  // Ends every request with this error.
  void fail_all(ErrorKind kind, const std::string& message);

  // Ends those who took part in a step that broke off.
  void fail_step(const std::string& message);

  void forget_prefixes() { allocator_.forget_prefixes(); }

  bool is_idle() const { return queue_.empty() && running_.empty(); }
  int32_t num_waiting() const { return static_cast<int32_t>(queue_.size()); }
  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }
  const BlockAllocator& allocator() const { return allocator_; }
  const DraftCounts& draft_counts() const { return draft_counts_; }  // of all requests since the start
  ContextTable& context_table() { return context_table_; }
  bool learns_drafts() const { return learns_drafts_; }
  void set_learns_drafts(bool learns) { learns_drafts_ = learns; }

 private:
  struct Sequence {
    std::vector<int32_t> prompt;  // text ids; for scoring also the forced codes
    std::vector<int32_t> blocks;
    int32_t num_known = 0;     // tokens whose ids are fixed
    int32_t num_computed = 0;  // tokens whose keys and values are cached
    int32_t remaining() const { return num_known - num_computed; }
    bool is_text(int32_t position) const { return position < static_cast<int32_t>(prompt.size()); }
  };
  struct Running {
    std::shared_ptr<Request> request;
    std::vector<Sequence> rows;  // conditional, then unconditional
    int32_t slot = 0;
    DraftState draft;
    int32_t num_drafts_wanted = 0;
    int32_t steady_window = 1;  // of a request that adapts its window, where steps are planned ahead
    // Of the step under way: draws, or rows of logits that are wanted whole, for scores or for a rule that draws here.
    int32_t first_draw = 0, num_draws = 0;
    int32_t first_logit_row = 0, first_score = 0, num_scores = 0;
    int32_t flawed_code = -1;  // the first whose logits are no numbers
  };
  // Room in a step.
  struct Reserve {
    int32_t rows = 0;  // query rows, and as many rows of logits
    int32_t draws = 0;
    void operator+=(const Reserve& other) { rows += other.rows, draws += other.draws; }
    void operator-=(const Reserve& other) { rows -= other.rows, draws -= other.draws; }
  };
  static Reserve need_of(const Running& running) {
    return {static_cast<int32_t>(running.rows.size()), running.request->is_scoring() ? 0 : 1};
  }

  std::vector<Sequence> rows_of(const Request& request) const;
  int32_t blocks_for(const Sequence& row, const Request& request) const;
  void admit();
  void drop_cancelled();
  void fill(StepPlan& plan);
  void skip_filled(Sequence& row) const;
  void choose_steady_windows();
  void prepare_drafts();
  void schedule(Running& running, StepPlan& plan, const Reserve& reserved);
  void schedule_scores(Running& running, StepPlan& plan);
  void append_rows(Running& running, Sequence& row, int32_t count, StepPlan& plan);
  void append_window(Running& running, int32_t num_drafts, StepPlan& plan);
  void append_draws(Running& running, int32_t first_seq, int32_t num_draws, StepPlan& plan);
  void take(Running& running, const StepPlan& plan, std::span<const float> logits);
  void take_scores(Running& running, std::span<const float> logits);
  void take_draws(Running& running, const StepPlan& plan);
  void take_logits(Running& running, const StepPlan& plan, std::span<const float> logits);
  void take_codes(Running& running, std::span<const int32_t> codes, int32_t num_drafts, int32_t num_drafts_kept,
                  const StepPlan& plan);
  void finish(Running& running, RequestStatus status, ErrorKind kind, const std::string& message);

  const SchedulerLimits limits_;
  const StepLimits step_limits_;
  BlockAllocator allocator_;
  std::deque<std::shared_ptr<Request>> queue_;
  std::vector<Running> running_;  // in order of admission
  std::vector<int32_t> free_slots_;
  ContextTable context_table_;
  bool learns_drafts_ = true;
  Acceptance acceptance_;
  Acceptance by_place_;  // of drafts by their place in a window
  StepCost step_cost_;
  int32_t steps_between_choices_ = 1;  // of windows, where steps are planned ahead
  DraftCounts draft_counts_;
};

}  // namespace simplear
