// What a step costs by its query rows, learnt from the steps that are run anyway.
//
// Nothing is measured beforehand and nothing is known about the machine, the model or what else is going on. Costs are
// relative: a shape by row count times a scale that all row counts share, so that a machine that slows down, or a
// context that grows, makes no row count look better than another.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

namespace simplear {

class StepCost {
 public:
  void observe(int32_t rows, double seconds);

  // The cost of each of these row counts (ascending) beside the others. More rows never cost less. Between row counts
  // that were tried, costs are interpolated. Beyond the last of them more rows look free, so that somebody tries them,
  // but no more than twice as many; infinity stands for those.
  std::vector<double> of(std::span<const int32_t> rows) const;

 private:
  struct Point {
    double log_seconds;  // less scale_
    int32_t num_trials;
  };

  double scale_ = 0.0;
  std::map<int, Point> points_;  // by logarithm of the row count
};

}  // namespace simplear
