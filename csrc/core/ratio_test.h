// Rules that keep a draft by what the network thinks of it, not by whether the draw in its place is the same.
//
// The host does it from whole logits: these rules are there to be compared with, and no picture of theirs is the plain
// one. A draft comes with the distribution q that it was drawn from (a guess from elsewhere: with certainty); a step
// brings p, the distribution at each place given the drafts before it.
//
// kRatio: keep draft d with probability min(1, p(d) / q(d)); where it is not kept, the code is drawn from what p has
// more than q, and that ends the step. Drafts behind it are drawn anew from p, with the noise of their position, so
// that they settle from step to step. What is drawn follows the network's own law. (Leviathan et al. 2023; Teng et al.
// 2024 for drafts of the step before; Gumbel-coupled drafts as in the speculative coupled decoding of 2025.)
//
// kSimpleAR: the rule of SimpleAR's Jacobi mode. As before, but the first place is kept whatever it says, the code
// drawn where one was not kept is only the next draft, nothing is coupled, and all drafts of the first step are the
// likeliest codes. What is drawn follows no stated law. (Wang et al. 2025, its published code. That has no cache, a
// window as long as the picture, and neither top-k nor top-p; here windows may be short and filters hold.)
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/draft.h"

namespace simplear {

enum class DraftRule : int32_t { kEqual, kRatio, kSimpleAR };

// The law of one draw, as head_sample.h states it: guided, over the temperature, filtered. uncond: empty without
// guidance. p: [codes]. False where a logit is no number.
bool draw_distribution(std::span<const float> cond, std::span<const float> uncond, float guidance_scale,
                       float temperature, int32_t top_k, float top_p, std::span<float> p);

// What a step decided: codes to keep, at least one, and how many of them had been drafts.
struct Verdict {
  std::vector<int32_t> codes;
  std::vector<float> log_probs;
  int32_t num_drafts_kept = 0;
};

// Applies a rule other than kEqual to the drafts of `state` and leaves the next ones in state.redraws. p: [places,
// codes], a place more than there are drafts; position, step: of the first place, and how many steps drew before, from
// which all chance is derived.
Verdict test_drafts(DraftRule rule, DraftState& state, std::span<const float> p, int32_t num_codes, uint64_t seed,
                    int32_t position, int32_t step);

}  // namespace simplear
