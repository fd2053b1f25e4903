#include "cuda/buckets.h"

#include <algorithm>

#include "core/check.h"

namespace simplear {
namespace {

// 1, 2, 4, 8, then four sizes for each doubling: a padding row costs next to nothing while weights stream, and more
// later on.
int32_t round_up(int32_t rows) {
  int32_t size = 1;
  while (size < rows) size *= 2;
  if (size <= 16) return size;
  const int32_t quarter = size / 8;
  return (rows + quarter - 1) / quarter * quarter;
}

}  // namespace

std::optional<StepCounts> bucket_for(const StepCounts& counts, const StepLimits& limits) {
  // Without draws the head has nothing to do, and a graph would run it.
  if (counts.num_draws == 0 || counts.num_tokens > kMaxGraphRows) return {};
  const int32_t rows = round_up(std::max(counts.num_tokens, counts.num_logit_rows));
  StepCounts bucket;
  bucket.num_tokens = std::min(rows, limits.max_tokens);
  bucket.num_seqs = std::min(rows, limits.max_seqs());
  bucket.num_logit_rows = std::min(rows, limits.max_logit_rows);
  // Two sizes: all draws guided, or a row for each. A draw costs noise for every code.
  const int32_t half = (rows + 1) / 2;
  bucket.num_draws = std::min(counts.num_draws <= half ? half : rows, limits.max_draws);
  bucket.num_windows = std::min(bucket.num_draws, limits.max_pairs);
  return bucket;
}

std::vector<StepCounts> decode_buckets(int32_t num_pairs, const StepLimits& limits) {
  std::vector<StepCounts> buckets;
  for (int32_t pairs = 1; pairs <= num_pairs; ++pairs) {
    const auto bucket = bucket_for({2 * pairs, 2 * pairs, 2 * pairs, pairs, pairs}, limits);
    if (bucket && (buckets.empty() || !(*bucket == buckets.back()))) buckets.push_back(*bucket);
  }
  return buckets;
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
  draws(plan.cond_row, int32_t{0});
  draws(plan.uncond_row, int32_t{-1});
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
