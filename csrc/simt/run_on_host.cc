#include <vector>

#include "core/thread_pool.h"
#include "cuda/op.h"

namespace simplear::simt {

void run_on_host(const CudaOp& op, const void* params, ThreadPool& pool) {
  Launcher launcher;
  launcher.is_dry_run = true;
  op.run(params, launcher);
  launcher.is_dry_run = false;
  launcher.workspace_bytes = launcher.workspace_bytes_needed;
  launcher.workspace_memory = pool.scratch(0, launcher.workspace_bytes);
  std::vector<int32_t> counters(launcher.num_counters_needed);
  launcher.counter_memory = counters.data();
  launcher.num_counters = counters.size();
  op.run(params, launcher);
  for (int32_t counter : counters)
    check(counter == 0, ErrorKind::kInternal, "op ", op.op, ": left a counter at ", counter, " instead of 0");
}

}  // namespace simplear::simt
