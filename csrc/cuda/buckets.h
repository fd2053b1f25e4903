// Which sizes of steps are recorded as graphs, and how a smaller step is made to fit one.
//
// A graph's sizes are fixed, so a step takes the smallest recorded one that holds it, and its plan is filled up with
// rows that do no harm: a padding token belongs to no sequence and is appended nowhere, a padding sequence has no
// queries, a padding draw goes to a slot that is nobody's, a padding window has no draws. Plain functions of plans;
// nothing here knows a device.
#pragma once

#include <optional>
#include <vector>

#include "core/step_plan.h"

namespace simplear {

// The largest number of query rows that a graph is recorded for. What is larger (prompts) is launched op by op: there
// the ops take longer than their launches.
constexpr int32_t kMaxGraphRows = 512;

// The sizes to run a step of `counts` with, or nothing where it is to be launched op by op.
std::optional<StepCounts> bucket_for(const StepCounts& counts, const StepLimits& limits);

// All sizes that bucket_for can answer for steps that draw from up to `num_pairs` guided images, one token each.
std::vector<StepCounts> decode_buckets(int32_t num_pairs, const StepLimits& limits);

// Fills plan entries from its counts up to `bucket`. num_codes: of the model.
void pad(StepPlan& plan, const StepCounts& bucket, int32_t num_codes);

}  // namespace simplear
