// A recorded forward pass: a list of ops with their arguments bound, replayed for every step.
//
// Python writes the transformer once and records it here; replaying touches no Python. Pointers are fixed at recording;
// the sizes that change from step to step are bound to the counts of a StepPlan by name.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "core/op.h"
#include "core/step_plan.h"
#include "core/thread_pool.h"

namespace simplear {

class Program {
 public:
  struct Binding {
    size_t offset;  // of an int32 field in the op's Params
    int count;      // StepCounts::index_of
  };
  struct Call {
    const OpImpl* op;
    std::vector<std::byte> params;
    std::vector<Binding> bindings;
    std::vector<std::shared_ptr<void>> lenders;  // kept alive as long as the program
    double seconds = 0;                          // spent in this call since timing was switched on
  };

  void add(Call call) { calls_.push_back(std::move(call)); }
  // Whether a run keeps the threads from its first call to its last, or lets somebody else have a turn between calls.
  enum class Turns { kOne, kShared };
  void run(const StepPlan& plan, ThreadPool& pool, Turns turns = Turns::kOne);

  void set_timing(bool on);
  const std::vector<Call>& calls() const { return calls_; }

 private:
  std::vector<Call> calls_;
  bool timing_ = false;
};

}  // namespace simplear
