#include "core/step_plan.h"

#include "core/check.h"

namespace simplear {

StepPlan::StepPlan(const StepLimits& limits)
    : StepPlan(limits, [](size_t bytes) { return Tensor::zeros({static_cast<int64_t>(bytes)}, DType::kUInt8); }) {}

StepPlan::StepPlan(const StepLimits& l, const Allocate& allocate) : limits(l) {
  struct Entry {
    Tensor& tensor;
    std::vector<int64_t> shape;
    DType dtype = DType::kInt32;
  };
  const auto lay_out = [&](std::vector<Entry> entries) {
    const auto padded = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
    size_t bytes = 0;
    for (Entry& entry : entries) {
      entry.tensor.shape = entry.shape;
      entry.tensor.dtype = entry.dtype;
      bytes += padded(entry.tensor.bytes());
    }
    const Tensor memory = allocate(bytes);
    size_t offset = 0;
    for (Entry& entry : entries) {
      entry.tensor.data = static_cast<char*>(memory.data) + offset;
      entry.tensor.owner = memory.owner;
      entry.tensor.device = memory.device;
      offset += padded(entry.tensor.bytes());
    }
    return memory;
  };
  planned = lay_out({{token_ids, {l.max_tokens}},
                     {token_slot, {l.max_tokens}},
                     {positions, {l.max_tokens}},
                     {slot_mapping, {l.max_tokens}},
                     {query_start_loc, {l.max_seqs() + 1}},
                     {context_lens, {l.max_seqs()}},
                     {block_table, {l.max_seqs(), l.max_blocks_per_seq}},
                     {logit_rows, {l.max_logit_rows}},
                     {cond_row, {l.max_draws}},
                     {uncond_row, {l.max_draws}},
                     {guidance_scale, {l.max_draws}, DType::kFloat32},
                     {temperature, {l.max_draws}, DType::kFloat32},
                     {top_k, {l.max_draws}},
                     {top_p, {l.max_draws}, DType::kFloat32},
                     {seed, {l.max_draws}, DType::kUInt64},
                     {position, {l.max_draws}},
                     {draw_slot, {l.max_draws}},
                     {window_start_loc, {l.max_pairs + 1}},
                     {window_seqs, {l.max_pairs, 2}},
                     {draft_source, {l.max_pairs}},
                     {draft_width, {l.max_pairs}}});
  lay_out({{token, {l.max_draws}}, {log_prob, {l.max_draws}, DType::kFloat32}, {last_code, {l.max_pairs + 1}}});
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
      {"window_start_loc", &StepPlan::window_start_loc},
      {"window_seqs", &StepPlan::window_seqs},
      {"draft_source", &StepPlan::draft_source},
      {"draft_width", &StepPlan::draft_width},
      {"token", &StepPlan::token},
      {"log_prob", &StepPlan::log_prob},
      {"last_code", &StepPlan::last_code},
  };
  return all;
}

int StepCounts::index_of(std::string_view name) {
  for (int i = 0; i < kCount; ++i)
    if (kNames[i] == name) return i;
  fail(ErrorKind::kInternal, "step plan: no count named ", name);
}

int32_t StepCounts::at(int index) const {
  const int32_t counts[] = {num_tokens, num_seqs, num_logit_rows, num_draws, num_windows};
  return counts[index];
}

}  // namespace simplear
