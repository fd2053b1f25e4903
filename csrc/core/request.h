// One image (or one teacher-forced scoring) on its way through the engine.
//
// The client writes the first half before submit() and reads the second half after the request ended; in between only
// the engine thread touches it, except for the atomics and what `mutex` guards.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/draft.h"
#include "core/ratio_test.h"
#include "core/tensor.h"

namespace simplear {

enum class RequestStatus { kQueued, kRunning, kFinished, kFailed };

struct Request {
  // --- what is asked for
  std::vector<int32_t> prompt;    // conditional text ids
  std::vector<int32_t> negative;  // unconditional text ids; empty: no guidance, one row instead of two
  int32_t num_image_tokens = 0;
  float guidance_scale = 1.0f;
  float temperature = 1.0f;
  int32_t top_k = 0;  // in 1 .. number of codes
  float top_p = 1.0f;
  uint64_t seed = 0;
  int32_t draft_window = 1;    // image tokens drawn in one step at most: the next one, and as many guesses less one
  bool adapts_window = false;  // as many of them as the step's cost and their chances justify
  DraftSource draft_source = DraftSource::kContext;
  DraftRule draft_rule = DraftRule::kEqual;  // others: the picture depends on the drafts
  // Digits of a code by coordinate, where a draft is to be kept that is merely near what was redrawn (lattice.h): the
  // picture then depends on the drafts. Empty: drafts never change it.
  std::vector<int32_t> relaxed_levels;
  std::vector<int32_t> proposal;  // of DraftSource::kGiven: codes in raster order
  int32_t grid_width = 0;         // image tokens in a row
  // Scoring instead of drawing: codes to force, and where their conditional logits go ([num_image_tokens, V] float32).
  std::vector<int32_t> forced_codes;
  Tensor scores;
  bool is_scoring() const { return !forced_codes.empty(); }

  // --- what came of it
  std::vector<int32_t> codes;
  std::vector<float> log_probs;
  std::atomic<int32_t> num_done{0};  // image tokens so far
  std::atomic<bool> cancel_requested{false};
  int64_t num_steps = 0;               // forward steps that this request took part in
  std::vector<int32_t> accepted_lens;  // image tokens that each sampling step yielded
  DraftCounts draft_counts;
  std::chrono::steady_clock::time_point submitted, admitted, first_token, ended;

  std::mutex mutex;
  std::condition_variable changed;
  RequestStatus status = RequestStatus::kQueued;
  ErrorKind error_kind = ErrorKind::kInternal;
  std::string error;
};

}  // namespace simplear
