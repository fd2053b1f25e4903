#include "cuda/graph_runner.h"

#include <cstring>

#include "core/check.h"

namespace simplear {
namespace {

StepPlan pinned_plan(const std::shared_ptr<Driver>& driver, const StepLimits& limits) {
  return StepPlan(limits,
                  [&](size_t bytes) { return pinned_zeros(driver, {static_cast<int64_t>(bytes)}, DType::kUInt8); });
}

}  // namespace

GraphRunner::GraphRunner(std::shared_ptr<DeviceProgram> program, std::shared_ptr<StepPlan> plan, StepHistory history,
                         Tensor logits, int32_t visual_offset)
    : driver_(program->driver()),
      program_(std::move(program)),
      plan_(std::move(plan)),
      history_(std::move(history)),
      logits_(std::move(logits)),
      visual_offset_(visual_offset),
      stream_(make_stream(driver_)),
      done_{make_event(driver_), make_event(driver_)},
      staged_(pinned_plan(driver_, plan_->limits)),
      idle_(pinned_plan(driver_, plan_->limits)),
      first_step_(pinned_zeros(driver_, {kMaxGroups}, DType::kInt32)),
      drawn_token_(pinned_zeros(driver_, history_.token.shape, DType::kInt32)),
      drawn_log_prob_(pinned_zeros(driver_, history_.log_prob.shape, DType::kFloat32)) {
  program_->reserve(all_buckets(plan_->limits));
  for (int32_t half = 0; half < kMaxGroups; ++half) first_step_.as<int32_t>()[half] = half * max_steps();
}

GraphRunner::~GraphRunner() {
  try {
    driver_->synchronize(stream_.get());
  } catch (const Error&) {
    // A device that is out of order has nothing under way.
  }
}

void GraphRunner::upload(const StepPlan& plan) {
  check(plan.limits == plan_->limits, ErrorKind::kInternal, "graph runner: a plan of other limits");
  std::memcpy(staged_.planned.data, plan.planned.data, plan.planned.bytes());
  staged_.counts() = plan.counts();
  staged_.num_scores = plan.num_scores;
  // The device may have drawn further than the host took over; what is known here is what counts.
  for (int32_t n = 0; n < plan.num_tokens; ++n) {
    int32_t& id = staged_.token_ids.as<int32_t>()[n];
    if (id < 0) id = plan.last_code.as<int32_t>()[plan.token_slot.as<int32_t>()[n]] + visual_offset_;
  }
  counts_ = bucket_for(plan.counts(), plan.limits);
  pad(staged_, counts_, static_cast<int32_t>(logits_.shape[1]));
  graph_ = is_recorded(counts_) ? record(counts_) : nullptr;
  ++num_uploads_;
  driver_->copy(plan_->planned.data, staged_.planned.data, staged_.planned.bytes(), stream_.get());
}

Driver::Graph* GraphRunner::record(const StepCounts& bucket) {
  if (const auto known = graphs_.find(bucket); known != graphs_.end()) return known->second.get();
  // Once in the ordinary way: a kernel that was never launched may have to be loaded, which a capture does not allow.
  // On a plan of padding alone, in the place of the one that is about to be uploaded.
  pad(idle_, bucket, static_cast<int32_t>(logits_.shape[1]));
  driver_->copy(plan_->planned.data, idle_.planned.data, idle_.planned.bytes(), stream_.get());
  program_->enqueue(bucket, stream_.get());
  driver_->synchronize(stream_.get());
  auto graph = capture(driver_, stream_.get(), [&] { program_->enqueue(bucket, stream_.get()); });
  return graphs_.emplace(bucket, std::move(graph)).first->second.get();
}

void GraphRunner::begin(const StepPlan& plan, int32_t num_steps, bool goes_on) {
  check(num_steps >= 1 && num_steps <= max_steps() && groups_.size() < kMaxGroups, ErrorKind::kInternal,
        "graph runner: ", num_steps, " steps after ", groups_.size(), " groups");
  if (!goes_on) upload(plan);
  const Group group{num_steps, half_};
  half_ = (half_ + 1) % kMaxGroups;
  Driver::Stream* stream = stream_.get();
  driver_->copy(history_.step.data, first_step_.as<int32_t>() + group.half, sizeof(int32_t), stream);
  for (int32_t i = 0; i < num_steps; ++i)
    if (graph_ != nullptr) driver_->launch(graph_, stream);
    else program_->enqueue(counts_, stream);
  const auto fetch = [&](const Tensor& from, const Tensor& to) {
    const size_t row = from.shape[1] * size_of(from.dtype), offset = row * group.half * max_steps();
    driver_->copy(static_cast<char*>(to.data) + offset, static_cast<const char*>(from.data) + offset, row * num_steps,
                  stream);
  };
  if (staged_.num_draws > 0) {
    fetch(history_.token, drawn_token_);
    fetch(history_.log_prob, drawn_log_prob_);
  }
  if (staged_.num_scores > 0) {
    if (host_logits_.data == nullptr) host_logits_ = pinned_zeros(driver_, logits_.shape, logits_.dtype);
    driver_->copy(host_logits_.data, logits_.data, logits_.shape[1] * sizeof(float) * staged_.num_logit_rows, stream);
  }
  driver_->record(done_[group.half].get(), stream);
  groups_.push_back(group);
}

DrawnSteps GraphRunner::collect() {
  check(!groups_.empty(), ErrorKind::kInternal, "graph runner: nothing to collect");
  const Group group = groups_.front();
  groups_.pop_front();
  driver_->synchronize(done_[group.half].get());
  const int64_t stride = drawn_token_.shape[1], first = stride * group.half * max_steps();
  return {drawn_token_.as<int32_t>() + first, drawn_log_prob_.as<float>() + first, group.num_steps,
          static_cast<int32_t>(stride)};
}

std::span<const float> GraphRunner::logits() const {
  return {host_logits_.as<float>(), static_cast<size_t>(host_logits_.data ? host_logits_.size() : 0)};
}

void GraphRunner::abandon() {
  groups_.clear();
  try {
    driver_->synchronize(stream_.get());
  } catch (const Error&) {
    // A device that is out of order has nothing under way, and says what is wrong again when a step is begun.
  }
}

}  // namespace simplear
