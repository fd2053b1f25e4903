// How many drafts each picture brings to the next step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/step_cost.h"

namespace simplear {

struct DraftOffer {
  std::vector<double> kept;  // the chance that this draft and all before it are right; never rises
  int32_t rows_per_draft = 2;
  int32_t num_chosen = 0;  // out: so many of them, from the first on
};

// Chooses the drafts that make the step yield the most tokens for its time. base_rows, base_tokens: of the step without
// them. No draft is chosen where none pays.
void choose_windows(const StepCost& cost, int32_t base_rows, double base_tokens, std::span<DraftOffer> offers);

}  // namespace simplear
