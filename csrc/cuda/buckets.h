// The sizes that steps have on a device, and how a smaller step is made to fit one.
//
// A graph's sizes are fixed, and kernels that were compiled beforehand are bound to sizes, so there is a short list of
// them: a step takes the smallest that holds it, and its plan is filled up with rows that do no harm: a padding token
// belongs to no sequence and is appended nowhere, a padding sequence has no queries, a padding draw goes to a slot that
// is nobody's, a padding window has no draws. Plain functions of plans; nothing here knows a device.
#pragma once

#include <vector>

#include "core/step_plan.h"

namespace simplear {

// The size that a step of `counts` runs with.
StepCounts bucket_for(const StepCounts& counts, const StepLimits& limits);

// All that bucket_for can answer.
std::vector<StepCounts> all_buckets(const StepLimits& limits);

// Whether a step of this size is recorded as a graph. Others are launched op by op: prompts, where the ops take longer
// than their launches.
bool is_recorded(const StepCounts& bucket);

// The sizes of steps that draw for guided images, one code or several of each, and are recorded.
std::vector<StepCounts> decode_buckets(const StepLimits& limits);

// Fills plan entries from its counts up to `bucket`. num_codes: of the model.
void pad(StepPlan& plan, const StepCounts& bucket, int32_t num_codes);

}  // namespace simplear
