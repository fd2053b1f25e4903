#include "cuda/buckets.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace simplear {
namespace {

constexpr int32_t kMaxGraphRows = 512;

// 1, 2, 4, 8, then four sizes for each doubling: a padding row costs next to nothing while weights stream, and more
// later on.
int32_t round_up(int32_t rows) {
  int32_t size = 1;
  while (size < rows) size *= 2;
  if (size <= 16) return size;
  const int32_t quarter = size / 8;
  return (rows + quarter - 1) / quarter * quarter;
}

// Draws of a step with so many rows: all guided, or a row for each. A draw costs noise for every code.
StepCounts size_of_rows(int32_t rows, bool has_logits, int32_t num_draws, const StepLimits& limits) {
  StepCounts size;
  size.num_tokens = std::min(rows, limits.max_tokens);
  size.num_seqs = std::min(rows, limits.max_seqs());
  size.num_logit_rows = has_logits ? std::min(rows, limits.max_logit_rows) : 0;
  const int32_t half = (rows + 1) / 2;
  if (num_draws > 0) size.num_draws = std::min(num_draws <= half ? half : rows, limits.max_draws);
  size.num_windows = std::min(size.num_draws, limits.max_pairs);
  return size;
}

}  // namespace

StepCounts bucket_for(const StepCounts& counts, const StepLimits& limits) {
  const int32_t rows = round_up(std::max(counts.num_tokens, counts.num_logit_rows));
  return size_of_rows(rows, counts.num_logit_rows > 0, counts.num_draws, limits);
}

std::vector<StepCounts> all_buckets(const StepLimits& limits) {
  std::vector<StepCounts> sizes;
  const int32_t most = std::max(limits.max_tokens, limits.max_logit_rows);
  for (int32_t rows = 1; rows <= round_up(most); rows = round_up(rows + 1))
    for (const auto& [has_logits, num_draws] : {std::pair{false, 0}, {true, 0}, {true, 1}, {true, rows}}) {
      const StepCounts size = size_of_rows(rows, has_logits, num_draws, limits);
      if (std::find(sizes.begin(), sizes.end(), size) == sizes.end()) sizes.push_back(size);
    }
  return sizes;
}

bool is_recorded(const StepCounts& bucket) { return bucket.num_draws > 0 && bucket.num_tokens <= kMaxGraphRows; }

std::vector<StepCounts> decode_buckets(const StepLimits& limits) {
  std::vector<StepCounts> sizes;
  const int32_t most = std::min({limits.max_draws, limits.max_tokens / 2, limits.max_logit_rows / 2});
  for (int32_t draws = 1; draws <= most; ++draws) {
    const int32_t pairs = std::min(draws, limits.max_pairs);
    const StepCounts size = bucket_for({2 * draws, 2 * pairs, 2 * draws, draws, pairs}, limits);
    if (is_recorded(size) && (sizes.empty() || !(size == sizes.back()))) sizes.push_back(size);
  }
  return sizes;
}

void pad(StepPlan& plan, const StepCounts& bucket, int32_t num_codes) {
  for (int i = 0; i < StepCounts::kCount; ++i)
    check(bucket.at(i) >= plan.at(i), ErrorKind::kInternal, "padding: a bucket of ", bucket.at(i), " for ", plan.at(i));
  const auto fill = [](const Tensor& tensor, int32_t from, int32_t to, auto value) {
    std::fill(tensor.as<decltype(value)>() + from, tensor.as<decltype(value)>() + std::max(from, to), value);
  };
  const auto tokens = [&](const Tensor& tensor, int32_t value) {
    fill(tensor, plan.num_tokens, bucket.num_tokens, value);
  };
  tokens(plan.token_ids, 0);
  tokens(plan.token_slot, plan.limits.max_pairs);
  tokens(plan.positions, 0);
  tokens(plan.slot_mapping, -1);
  fill(plan.query_start_loc, plan.num_seqs + 1, bucket.num_seqs + 1, plan.num_tokens);
  fill(plan.context_lens, plan.num_seqs, bucket.num_seqs, int32_t{0});
  fill(plan.logit_rows, plan.num_logit_rows, bucket.num_logit_rows, int32_t{0});
  const auto draws = [&](const Tensor& tensor, auto value) { fill(tensor, plan.num_draws, bucket.num_draws, value); };
  // Padding draws take the padding rows of logits, two each: rows that nobody draws from would be scored, which costs
  // another pass over the head. Where there are no more of those, they draw from a row that is drawn from already: one
  // that is scored would lose its scores.
  int32_t row = plan.num_logit_rows;
  const int32_t drawn_row = plan.num_draws > 0 ? plan.cond_row.as<int32_t>()[0] : 0;
  const auto next_row = [&](int32_t otherwise) { return row < bucket.num_logit_rows ? row++ : otherwise; };
  for (int32_t draw = plan.num_draws; draw < bucket.num_draws; ++draw) {
    plan.cond_row.as<int32_t>()[draw] = next_row(drawn_row);
    plan.uncond_row.as<int32_t>()[draw] = next_row(-1);
  }
  draws(plan.guidance_scale, 1.0f);
  draws(plan.temperature, 0.0f);
  draws(plan.top_k, num_codes);
  draws(plan.top_p, 1.0f);
  draws(plan.seed, uint64_t{0});
  draws(plan.position, int32_t{0});
  draws(plan.draw_slot, plan.limits.max_pairs);
  fill(plan.window_start_loc, plan.num_windows + 1, bucket.num_windows + 1, plan.num_draws);
  fill(plan.window_seqs, 2 * plan.num_windows, 2 * bucket.num_windows, int32_t{-1});
  fill(plan.draft_source, plan.num_windows, bucket.num_windows, int32_t{0});
  fill(plan.draft_width, plan.num_windows, bucket.num_windows, int32_t{0});
}

}  // namespace simplear
