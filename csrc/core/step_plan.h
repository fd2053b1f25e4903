// Everything that one forward step needs to know, as plain arrays at fixed addresses.
//
// The scheduler fills it, the program's ops read it, the sampler writes `token` and `log_prob` back into it. Capacities
// are fixed at construction, so a recorded program can keep pointers; the four counts say how much of each is in use.
#pragma once

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
};

struct StepPlan {
  explicit StepPlan(const StepLimits& limits);

  const StepLimits limits;
  int32_t num_tokens = 0, num_seqs = 0, num_logit_rows = 0, num_draws = 0;

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
  Tensor token, log_prob;               // [max_draws] int32, float32, written by the sampler
  Tensor last_code;                     // [max_pairs] int32, by slot; lives from step to step

  struct NamedTensor {
    const char* name;
    Tensor StepPlan::* tensor;
  };
  static const std::vector<NamedTensor>& tensors();

  // "num_tokens", "num_seqs", "num_logit_rows", "num_draws": what a program may bind a size to.
  static int count_index(std::string_view name);
  int32_t count(int index) const;
};

}  // namespace simplear
