#include "core/window_choice.h"

#include <algorithm>

namespace simplear {

void choose_windows(const StepCost& cost, int32_t base_rows, double base_tokens, std::span<DraftOffer> offers) {
  struct Candidate {
    double kept;
    size_t offer;
  };
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < offers.size(); ++i)
    for (double kept : offers[i].kept) candidates.push_back({kept, i});
  // The likeliest first: chances of one picture never rise, so its drafts stay in order.
  std::stable_sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) { return a.kept > b.kept; });

  std::vector<int32_t> rows{base_rows};
  for (const Candidate& candidate : candidates) rows.push_back(rows.back() + offers[candidate.offer].rows_per_draft);
  const std::vector<double> costs = cost.of(rows);
  double tokens = base_tokens, best_rate = tokens / costs[0];
  size_t num_best = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    tokens += candidates[i].kept;
    if (tokens / costs[i + 1] <= best_rate) continue;
    best_rate = tokens / costs[i + 1];
    num_best = i + 1;
  }
  for (size_t i = 0; i < num_best; ++i) ++offers[candidates[i].offer].num_chosen;
}

}  // namespace simplear
