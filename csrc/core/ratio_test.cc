#include "core/ratio_test.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "core/check.h"
#include "core/philox.h"

namespace simplear {
namespace {

double to_unit(uint32_t bits) { return (bits + 0.5) / 4294967296.0; }

// All chance of a place in a step. The third word of the counter keeps it apart from the noise of plain draws.
struct Chance {
  double test, draw;

  Chance(uint64_t seed, int32_t position, int32_t step) {
    const auto words = philox(seed, {static_cast<uint32_t>(step), static_cast<uint32_t>(position), 1, 0});
    test = to_unit(words[0]);
    draw = (words[1] + to_unit(words[2])) / 4294967296.0;
  }
};

// The code at which the running sum of weights passes `chance` of their total.
template <class Weight>
int32_t draw_by(const Weight& weight, int32_t num_codes, double chance) {
  double total = 0;
  for (int32_t v = 0; v < num_codes; ++v) total += weight(v);
  double sum = 0;
  int32_t last = -1;
  for (int32_t v = 0; v < num_codes; ++v) {
    if (!(weight(v) > 0)) continue;
    sum += weight(v);
    last = v;
    if (sum > chance * total) break;
  }
  return last;
}

// As a plain draw at this position, with its noise (gumbel.h).
int32_t draw_coupled(std::span<const float> p, uint64_t seed, int32_t position) {
  int32_t best = -1;
  double best_score = 0;
  for (size_t v = 0; v < p.size(); ++v) {
    if (!(p[v] > 0)) continue;
    const auto words = philox(seed, {static_cast<uint32_t>(v / 4), static_cast<uint32_t>(position), 0, 0});
    const double score = std::log(p[v]) - std::log(-std::log(to_unit(~words[v % 4])));
    if (best >= 0 && score <= best_score) continue;
    best = static_cast<int32_t>(v);
    best_score = score;
  }
  return best;
}

}  // namespace

bool draw_distribution(std::span<const float> cond, std::span<const float> uncond, float guidance_scale,
                       float temperature, int32_t top_k, float top_p, std::span<float> p) {
  const float divisor = temperature > 0 ? temperature : 1.0f;
  float top = -INFINITY;
  for (size_t v = 0; v < p.size(); ++v) {
    p[v] = (uncond.empty() ? cond[v] : uncond[v] + guidance_scale * (cond[v] - uncond[v])) / divisor;
    if (!std::isfinite(p[v])) return false;
    top = std::max(top, p[v]);
  }
  if (temperature == 0) {
    const auto best = std::max_element(p.begin(), p.end()) - p.begin();
    std::fill(p.begin(), p.end(), 0.0f);
    p[best] = 1.0f;
    return true;
  }
  float threshold = -INFINITY;
  std::vector<float> sorted;
  if (top_k < static_cast<int32_t>(p.size()) || top_p < 1) {
    sorted.assign(p.begin(), p.end());
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    threshold = sorted[top_k - 1];
  }
  if (top_p < 1) {
    double total = 0, mass = 0;
    for (float z : sorted)
      if (z >= threshold) total += std::exp(z - top);
    for (float z : sorted) {
      mass += std::exp(z - top);
      if (mass < top_p * total) continue;
      threshold = std::max(threshold, z);
      break;
    }
  }
  double sum = 0;
  for (float& z : p) sum += z = z >= threshold ? std::exp(z - top) : 0.0f;
  for (float& weight : p) weight = static_cast<float>(weight / sum);
  return true;
}

Verdict test_drafts(DraftRule rule, DraftState& state, std::span<const float> p, int32_t num_codes, uint64_t seed,
                    int32_t position, int32_t step) {
  const auto num_drafts = static_cast<int32_t>(state.drafts.size()), num_places = num_drafts + 1;
  check(rule != DraftRule::kEqual && p.size() == static_cast<size_t>(num_places) * num_codes, ErrorKind::kInternal,
        "verification: ", num_drafts, " drafts, ", p.size(), " probabilities");
  // Of the drafts, those that were drawn from a distribution come first; the others are guesses.
  const auto num_drawn = std::min(static_cast<int32_t>(state.redraws.size()), num_drafts);
  const bool is_simplear = rule == DraftRule::kSimpleAR, is_first_step = position < 2 && num_drawn == 0;

  const auto row = [&](int32_t i) { return p.subspan(static_cast<size_t>(i) * num_codes, num_codes); };
  const auto draft = [&](int32_t i) { return state.drafts[i].chosen.code; };
  const auto chance = [&](int32_t i) { return Chance(seed, position + i, step); };
  const auto q = [&](int32_t i, int32_t code) {
    return i < num_drawn ? state.redraw_probs[static_cast<size_t>(i) * num_codes + code]
                         : static_cast<float>(code == draft(i));
  };
  const auto is_kept = [&](int32_t i) { return chance(i).test * q(i, draft(i)) < row(i)[draft(i)]; };
  const auto draw = [&](int32_t i) {
    const auto weight = [&](int32_t v) { return row(i)[v]; };
    return draw_by(weight, num_codes, chance(i).draw);
  };
  const auto draw_rest = [&](int32_t i) {
    const auto weight = [&](int32_t v) { return std::max(row(i)[v] - q(i, v), 0.0f); };
    const int32_t code = draw_by(weight, num_codes, chance(i).draw);
    return code >= 0 ? code : draw(i);
  };
  const auto redraw = [&](int32_t i) {
    if (!is_simplear) return draw_coupled(row(i), seed, position + i);
    return is_first_step ? static_cast<int32_t>(std::max_element(row(i).begin(), row(i).end()) - row(i).begin())
                         : draw(i);
  };

  Verdict verdict;
  const auto keep = [&](int32_t i, int32_t code) {
    verdict.codes.push_back(code);
    verdict.log_probs.push_back(std::log(row(i)[code]));
  };
  std::vector<Redraw> redraws;
  int32_t place = 0;
  if (is_simplear) {
    // Guesses that were not drawn from a distribution can not be tested, and wait for the next step.
    keep(0, num_drawn > 0 ? draft(0) : redraw(0));
    for (place = 1; place < num_drawn && is_kept(place); ++place) keep(place, draft(place));
    verdict.num_drafts_kept = std::min(place, num_drawn);
    if (place < num_drawn) redraws.push_back({draw_rest(place), 0.0f});
  } else {
    for (; place < num_drafts && is_kept(place); ++place) keep(place, draft(place));
    verdict.num_drafts_kept = place;
    keep(place, place < num_drafts ? draw_rest(place) : draw(place));
    ++place;
  }
  const int32_t num_kept = place;
  for (int32_t i = num_kept + static_cast<int32_t>(redraws.size()); i < num_places; ++i)
    redraws.push_back({redraw(i), 0.0f});
  const std::span<const float> behind = p.subspan(static_cast<size_t>(num_kept) * num_codes);
  state.redraw_probs.assign(behind.begin(), behind.end());
  state.redraws = std::move(redraws);
  state.drafts.clear();
  return verdict;
}

}  // namespace simplear
