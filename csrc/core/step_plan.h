// Everything that one forward step needs to know, as plain arrays at fixed addresses.
//
// The scheduler fills it, the program's ops read it, the sampler writes `token` and `log_prob` back into it. Capacities
// are fixed at construction, so a recorded program can keep pointers; the five counts say how much of each is in use.
// What the scheduler fills lies in one piece of memory, so that one copy brings it to another device.
#pragma once

#include <compare>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace simplear {

struct Request;

struct StepLimits {
  int32_t max_tokens = 0;          // query rows of a step
  int32_t max_pairs = 0;           // guidance pairs in flight
  int32_t max_logit_rows = 0;      // rows that reach the head
  int32_t max_draws = 0;           // tokens sampled in a step, those that verify a draft included
  int32_t max_blocks_per_seq = 0;  // width of the block table
  int32_t max_seqs() const { return 2 * max_pairs; }

  bool operator==(const StepLimits&) const = default;
};

// How much of a plan is in use.
struct StepCounts {
  int32_t num_tokens = 0, num_seqs = 0, num_logit_rows = 0, num_draws = 0, num_windows = 0;

  static constexpr int kCount = 5;
  static constexpr const char* kNames[kCount] = {"num_tokens", "num_seqs", "num_logit_rows", "num_draws",
                                                 "num_windows"};
  // "num_tokens", "num_seqs", ...: what a program may bind a size to.
  static int index_of(std::string_view name);
  int32_t at(int index) const;

  auto operator<=>(const StepCounts&) const = default;
};

struct StepPlan : StepCounts {
  // Zero-filled memory of so many bytes, on the device that the plan is for.
  using Allocate = std::function<Tensor(size_t bytes)>;

  explicit StepPlan(const StepLimits& limits);
  StepPlan(const StepLimits& limits, const Allocate& allocate);

  const StepLimits limits;
  int32_t num_scores = 0;  // rows of logits that somebody wants whole

  Tensor planned;  // [bytes] uint8: all that the scheduler fills

  // One entry a query row.
  Tensor token_ids;     // [max_tokens] int32; -1: the code sampled last for the row's slot
  Tensor token_slot;    // [max_tokens] int32
  Tensor positions;     // [max_tokens] int32
  Tensor slot_mapping;  // [max_tokens] int32: block * block size + offset
  // One entry a sequence.
  Tensor query_start_loc;  // [max_seqs + 1] int32
  Tensor context_lens;     // [max_seqs] int32, this step's rows included
  Tensor block_table;      // [max_seqs, max_blocks_per_seq] int32
  // One entry a row of logits.
  Tensor logit_rows;  // [max_logit_rows] int32: query row
  // One entry a sampled token.
  Tensor cond_row, uncond_row;          // [max_draws] int32: row of logits; uncond -1 without guidance
  Tensor guidance_scale, temperature;   // [max_draws] float32
  Tensor top_k, top_p, seed, position;  // [max_draws] int32, float32, uint64, int32
  Tensor draw_slot;                     // [max_draws] int32
  // One entry an image that draws: its next token, and those that verify its drafts.
  Tensor window_start_loc;  // [max_pairs + 1] int32: its first draw
  Tensor window_seqs;       // [max_pairs, 2] int32: conditional and unconditional sequence; the latter may be -1
  Tensor draft_source, draft_width;  // [max_pairs] int32: where further guesses come from; tokens in a row of the image
  // Not planned.
  Tensor token, log_prob;  // [max_draws] int32, float32, written by the sampler
  Tensor last_code;        // [max_pairs + 1] int32, by slot; lives from step to step; the last entry is nobody's

  struct NamedTensor {
    const char* name;
    Tensor StepPlan::* tensor;
  };
  static const std::vector<NamedTensor>& tensors();

  StepCounts& counts() { return *this; }
  const StepCounts& counts() const { return *this; }
};

}  // namespace simplear
