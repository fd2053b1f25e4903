#include "core/step_plan.h"

#include "core/check.h"

namespace simplear {

StepPlan::StepPlan(const StepLimits& l) : limits(l) {
  const auto ints = [](std::vector<int64_t> shape) { return Tensor::zeros(std::move(shape), DType::kInt32); };
  const auto floats = [](std::vector<int64_t> shape) { return Tensor::zeros(std::move(shape), DType::kFloat32); };
  token_ids = ints({l.max_tokens});
  token_slot = ints({l.max_tokens});
  positions = ints({l.max_tokens});
  slot_mapping = ints({l.max_tokens});
  query_start_loc = ints({l.max_seqs() + 1});
  context_lens = ints({l.max_seqs()});
  block_table = ints({l.max_seqs(), l.max_blocks_per_seq});
  logit_rows = ints({l.max_logit_rows});
  cond_row = ints({l.max_draws});
  uncond_row = ints({l.max_draws});
  guidance_scale = floats({l.max_draws});
  temperature = floats({l.max_draws});
  top_k = ints({l.max_draws});
  top_p = floats({l.max_draws});
  seed = Tensor::zeros({l.max_draws}, DType::kUInt64);
  position = ints({l.max_draws});
  draw_slot = ints({l.max_draws});
  token = ints({l.max_draws});
  log_prob = floats({l.max_draws});
  last_code = ints({l.max_pairs});
}

const std::vector<StepPlan::NamedTensor>& StepPlan::tensors() {
  static const std::vector<NamedTensor> all = {
      {"token_ids", &StepPlan::token_ids},
      {"token_slot", &StepPlan::token_slot},
      {"positions", &StepPlan::positions},
      {"slot_mapping", &StepPlan::slot_mapping},
      {"query_start_loc", &StepPlan::query_start_loc},
      {"context_lens", &StepPlan::context_lens},
      {"block_table", &StepPlan::block_table},
      {"logit_rows", &StepPlan::logit_rows},
      {"cond_row", &StepPlan::cond_row},
      {"uncond_row", &StepPlan::uncond_row},
      {"guidance_scale", &StepPlan::guidance_scale},
      {"temperature", &StepPlan::temperature},
      {"top_k", &StepPlan::top_k},
      {"top_p", &StepPlan::top_p},
      {"seed", &StepPlan::seed},
      {"position", &StepPlan::position},
      {"draw_slot", &StepPlan::draw_slot},
      {"token", &StepPlan::token},
      {"log_prob", &StepPlan::log_prob},
      {"last_code", &StepPlan::last_code},
  };
  return all;
}

int StepPlan::count_index(std::string_view name) {
  constexpr std::string_view names[] = {"num_tokens", "num_seqs", "num_logit_rows", "num_draws"};
  for (int i = 0; i < 4; ++i)
    if (names[i] == name) return i;
  fail(ErrorKind::kInternal, "step plan: no count named ", name);
}

int32_t StepPlan::count(int index) const {
  const int32_t counts[] = {num_tokens, num_seqs, num_logit_rows, num_draws};
  return counts[index];
}

}  // namespace simplear
