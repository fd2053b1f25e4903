#include "core/step_cost.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace simplear {
namespace {

constexpr int kPointsPerOctave = 8;
// A step that differs by more than this (log) from what was expected was interrupted, and is believed no further.
constexpr double kBelieved = 0.5;
constexpr double kScaleRate = 0.05, kPointRate = 0.1;
constexpr int32_t kTrials = 2;

int point_of(int32_t rows) { return static_cast<int>(std::lround(kPointsPerOctave * std::log2(std::max(rows, 1)))); }

}  // namespace

void StepCost::observe(int32_t rows, double seconds) {
  if (!(seconds > 0)) return;
  if (points_.empty()) scale_ = std::log(seconds);
  const double observed = std::log(seconds) - scale_;
  Point& point = points_.try_emplace(point_of(rows), Point{observed, 0}).first->second;
  if (point.num_trials < kTrials) {
    // A cold cache or an interruption only ever adds.
    point.log_seconds = std::min(point.log_seconds, observed);
    ++point.num_trials;
    return;
  }
  const double error = std::clamp(observed - point.log_seconds, -kBelieved, kBelieved);
  scale_ += kScaleRate * error;
  point.log_seconds += kPointRate * error;
}

std::vector<double> StepCost::of(std::span<const int32_t> rows) const {
  std::vector<std::pair<int, double>> tried;
  for (const auto& [at, point] : points_)
    if (point.num_trials >= kTrials) tried.emplace_back(at, point.log_seconds);
  for (size_t i = tried.size(); i-- > 1;) tried[i - 1].second = std::min(tried[i - 1].second, tried[i].second);

  std::vector<double> cost(rows.size(), std::numeric_limits<double>::infinity());
  if (tried.empty() && !rows.empty()) cost[0] = 1.0;
  size_t above = 0;  // first point that is not before the row count
  for (size_t i = 0; i < rows.size() && !tried.empty(); ++i) {
    const int at = point_of(rows[i]);
    while (above < tried.size() && tried[above].first < at) ++above;
    if (above == tried.size()) {
      if (at <= tried.back().first + kPointsPerOctave) cost[i] = std::exp(tried.back().second);
    } else if (above == 0 || tried[above].first == at) {
      cost[i] = std::exp(tried[above].second);
    } else {
      const auto& [x0, y0] = tried[above - 1];
      const auto& [x1, y1] = tried[above];
      cost[i] = std::exp(y0 + (y1 - y0) * (at - x0) / (x1 - x0));
    }
  }
  return cost;
}

}  // namespace simplear
