#include "core/scheduler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/window_choice.h"

namespace simplear {
namespace {

// A draft with a smaller chance to be kept is not worth preparing where the window adapts.
constexpr double kLeastChance = 0.02;
// After how many steps windows are chosen anew where steps are planned ahead: soon after they changed, later while they
// stay. A plan costs a fraction of a step, and the device waits for it.
constexpr int32_t kFewestSteps = 8, kMostSteps = 64;

template <class T>
void append(const Tensor& tensor, int32_t index, T value) {
  tensor.as<T>()[index] = value;
}

// Of Acceptance; far places share the last one.
uint8_t place_of(int32_t draft) { return static_cast<uint8_t>(std::min(draft, Acceptance::kNumKinds - 1)); }

uint64_t hash_of(const std::vector<int32_t>& ids) {
  uint64_t hash = 0xCBF29CE484222325u;  // FNV-1a
  for (int32_t id : ids) hash = (hash ^ static_cast<uint32_t>(id)) * 0x100000001B3u;
  return hash;
}

void end(Request& request, RequestStatus status, ErrorKind kind, const std::string& message) {
  {
    std::lock_guard lock(request.mutex);
    request.status = status;
    request.error_kind = kind;
    request.error = message;
    request.ended = std::chrono::steady_clock::now();
  }
  request.changed.notify_all();
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits, const StepLimits& step_limits, int32_t num_blocks,
                     int32_t block_size)
    : limits_(limits), step_limits_(step_limits), allocator_(num_blocks, block_size) {
  for (int32_t slot = step_limits.max_pairs; slot-- > 0;) free_slots_.push_back(slot);
}

void Scheduler::enqueue(std::shared_ptr<Request> request) {
  const Request& r = *request;
  const auto invalid = ErrorKind::kInvalidRequest;
  check(!r.prompt.empty(), invalid, "prompt_ids: expected at least one token, got none");
  check(r.num_image_tokens > 0, invalid, "image tokens: expected at least 1, got ", r.num_image_tokens);
  for (const auto* ids : {&r.prompt, &r.negative})
    for (int32_t id : *ids)
      check(id >= 0 && id < limits_.visual_offset + limits_.num_codes, invalid, "token id: expected 0..",
            limits_.visual_offset + limits_.num_codes - 1, ", got ", id);
  for (int32_t code : r.forced_codes)
    check(code >= 0 && code < limits_.num_codes, invalid, "code: expected 0..", limits_.num_codes - 1, ", got ", code);
  check(std::isfinite(r.guidance_scale), invalid, "guidance_scale: expected a finite number, got ", r.guidance_scale);
  check(std::isfinite(r.temperature) && r.temperature >= 0, invalid, "temperature: expected a number >= 0, got ",
        r.temperature);
  check(r.top_k >= 1 && r.top_k <= limits_.num_codes, invalid, "top_k: expected 1..", limits_.num_codes, ", got ",
        r.top_k);
  for (int32_t code : r.proposal)
    check(code >= 0 && code < limits_.num_codes, invalid, "proposal: expected 0..", limits_.num_codes - 1, ", got ",
          code);
  for (int32_t digits : r.relaxed_levels)
    check(digits >= 1, invalid, "relaxed_levels: expected numbers of digits, got ", digits);
  check(r.draft_window >= 1, invalid, "draft_window: expected at least 1, got ", r.draft_window);
  check(r.draft_rule == DraftRule::kEqual || !keeps_table(r.draft_source), invalid,
        "draft_source: a rule that compares probabilities takes left or above, guesses of the image's own");
  check(r.top_p > 0 && r.top_p <= 1, invalid, "top_p: expected a number in (0, 1], got ", r.top_p);
  int32_t blocks = 0;
  const char* name = "prompt";
  for (const Sequence& row : rows_of(r)) {
    const int64_t length = int64_t{row.num_known} + (r.is_scoring() ? 1 : r.num_image_tokens);
    check(length <= limits_.max_positions, invalid, name, " and picture of ", length, " tokens: the model knows ",
          limits_.max_positions, " positions; shorten the ", name, " or lower the resolution");
    blocks += blocks_for(row, r);
    name = "negative prompt";
  }
  check(blocks <= allocator_.num_blocks(), ErrorKind::kCapacity, "request needs ", blocks, " KV blocks, the cache has ",
        allocator_.num_blocks(), ": lower the resolution or raise kv_cache_bytes");
  check(num_waiting() < limits_.max_queue, ErrorKind::kQueueFull, "the queue is full (", limits_.max_queue,
        " requests wait): try again later");
  request->submitted = std::chrono::steady_clock::now();
  queue_.push_back(std::move(request));
}

std::vector<Scheduler::Sequence> Scheduler::rows_of(const Request& request) const {
  std::vector<Sequence> rows(request.negative.empty() || request.is_scoring() ? 1 : 2);
  rows[0].prompt = request.prompt;
  if (request.is_scoring())
    for (size_t i = 0; i + 1 < request.forced_codes.size(); ++i)
      rows[0].prompt.push_back(request.forced_codes[i] + limits_.visual_offset);
  if (rows.size() == 2) rows[1].prompt = request.negative;
  for (Sequence& row : rows) row.num_known = static_cast<int32_t>(row.prompt.size());
  return rows;
}

int32_t Scheduler::blocks_for(const Sequence& row, const Request& request) const {
  // The last image token is never fed back.
  const int32_t drawn = request.is_scoring() ? 0 : request.num_image_tokens - 1;
  return (row.num_known + drawn + allocator_.block_size() - 1) / allocator_.block_size();
}

void Scheduler::drop_cancelled() {
  const auto message = "the request was cancelled";
  std::erase_if(queue_, [&](const std::shared_ptr<Request>& request) {
    if (!request->cancel_requested) return false;
    end(*request, RequestStatus::kFailed, ErrorKind::kCancelled, message);
    return true;
  });
  std::erase_if(running_, [&](Running& running) {
    if (!running.request->cancel_requested) return false;
    finish(running, RequestStatus::kFailed, ErrorKind::kCancelled, message);
    return true;
  });
}

void Scheduler::admit() {
  while (!queue_.empty() && !free_slots_.empty()) {
    Running running;
    running.request = queue_.front();
    running.rows = rows_of(*running.request);
    for (size_t i = 0; i < running.rows.size(); ++i) {
      Sequence& row = running.rows[i];
      // Forced codes are not shared: the logits of every one of them are wanted, so each must be computed.
      const auto& text = i == 0 ? running.request->prompt : running.request->negative;
      if (allocator_.reserve(text, blocks_for(row, *running.request), row.blocks)) continue;
      // All blocks or none. First come, first served: nobody overtakes.
      for (const Sequence& other : running.rows) allocator_.release(other.blocks);
      return;
    }
    running.slot = free_slots_.back();
    free_slots_.pop_back();
    const Request& request = *running.request;
    running.draft.source = request.draft_source;
    running.draft.width = request.grid_width;
    running.draft.prompt = hash_of(request.prompt);
    running.draft.codes = &request.codes;
    running.draft.proposal = &request.proposal;
    {
      std::lock_guard lock(running.request->mutex);
      running.request->status = RequestStatus::kRunning;
      running.request->admitted = std::chrono::steady_clock::now();
    }
    running_.push_back(std::move(running));
    queue_.pop_front();
  }
}

void Scheduler::skip_filled(Sequence& row) const {
  const int32_t size = allocator_.block_size();
  while (row.remaining() > 1 && row.is_text(row.num_computed + 1)) {
    const int32_t filled = allocator_.filled(row.blocks[row.num_computed / size]);
    if (filled <= row.num_computed % size) return;
    row.num_computed = std::min(row.num_computed / size * size + filled, row.num_known - 1);
  }
}

// The next `count` tokens of a row: known ones, then drafts.
void Scheduler::append_rows(Running& running, Sequence& row, int32_t count, StepPlan& plan) {
  const int32_t size = allocator_.block_size();
  const int32_t seq = plan.num_seqs++;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t position = row.num_computed + i, n = plan.num_tokens++;
    const int32_t block = row.blocks[position / size], offset = position % size;
    const int32_t token = position >= row.num_known
                              ? running.draft.drafts[position - row.num_known].chosen.code + limits_.visual_offset
                          : row.is_text(position) ? row.prompt[position]
                                                  : -1;
    append(plan.token_ids, n, token);
    append(plan.token_slot, n, running.slot);
    append(plan.positions, n, position);
    append(plan.slot_mapping, n, block * size + offset);
    allocator_.set_filled(block, std::max(allocator_.filled(block), offset + 1));
  }
  append(plan.query_start_loc, seq + 1, plan.num_tokens);
  append(plan.context_lens, seq, row.num_computed + count);
  check(static_cast<int32_t>(row.blocks.size()) <= step_limits_.max_blocks_per_seq, ErrorKind::kInternal,
        "scheduler: a row has more blocks than the plan");
  std::copy(row.blocks.begin(), row.blocks.end(),
            plan.block_table.as<int32_t>() + int64_t{seq} * step_limits_.max_blocks_per_seq);
  // A draft's keys and values are overwritten when it turns out wrong.
  row.num_computed = std::min(row.num_computed + count, row.num_known);
}

void Scheduler::schedule_scores(Running& running, StepPlan& plan) {
  Sequence& row = running.rows[0];
  skip_filled(row);
  const int32_t first_wanted = static_cast<int32_t>(running.request->prompt.size()) - 1;
  int32_t count = std::min(step_limits_.max_tokens - plan.num_tokens, row.remaining());
  // No more rows of logits than the head's buffer still takes.
  const int32_t room = step_limits_.max_logit_rows - plan.num_logit_rows;
  count = std::min(count, std::max(first_wanted - row.num_computed, 0) + room);
  if (count <= 0) return;
  const int32_t begin = row.num_computed, first_row = plan.num_tokens;
  append_rows(running, row, count, plan);
  running.first_logit_row = plan.num_logit_rows;
  running.first_score = std::max(begin - first_wanted, 0);
  for (int32_t i = 0; i < count; ++i)
    if (begin + i >= first_wanted) append(plan.logit_rows, plan.num_logit_rows++, first_row + i);
  running.num_scores = plan.num_logit_rows - running.first_logit_row;
  plan.num_scores += running.num_scores;
}

// The last known token of every row and `num_drafts` drafts behind it, and the draws at all of them.
void Scheduler::append_window(Running& running, int32_t num_drafts, StepPlan& plan) {
  const int32_t num_places = num_drafts + 1, first_seq = plan.num_seqs;
  running.first_logit_row = plan.num_logit_rows;
  for (Sequence& row : running.rows) {
    skip_filled(row);
    append_rows(running, row, row.remaining() + num_drafts, plan);
    for (int32_t i = 0; i < num_places; ++i)
      append(plan.logit_rows, plan.num_logit_rows++, plan.num_tokens - num_places + i);
  }
  if (running.request->draft_rule != DraftRule::kEqual) {
    running.num_scores = plan.num_logit_rows - running.first_logit_row;
    plan.num_scores += running.num_scores;
    return;
  }
  append_draws(running, first_seq, num_places, plan);
}

// Draws from the sequences and rows of logits that a window has just added.
void Scheduler::append_draws(Running& running, int32_t first_seq, int32_t num_draws, StepPlan& plan) {
  const Request& request = *running.request;
  const bool is_guided = running.rows.size() == 2;
  const int32_t window = plan.num_windows++;
  append(plan.window_seqs, 2 * window, first_seq);
  append(plan.window_seqs, 2 * window + 1, is_guided ? first_seq + 1 : -1);
  running.first_draw = plan.num_draws;
  running.num_draws = num_draws;
  append(plan.draft_source, window, static_cast<int32_t>(request.draft_source));
  append(plan.draft_width, window, request.grid_width);
  for (int32_t d = 0; d < num_draws; ++d) {
    const int32_t draw = plan.num_draws++, row = running.first_logit_row + d;
    append(plan.cond_row, draw, row);
    append(plan.uncond_row, draw, is_guided ? row + num_draws : -1);
    append(plan.guidance_scale, draw, request.guidance_scale);
    append(plan.temperature, draw, request.temperature);
    append(plan.top_k, draw, request.top_k);
    append(plan.top_p, draw, request.top_p);
    append(plan.seed, draw, request.seed);
    append(plan.position, draw, static_cast<int32_t>(request.codes.size()) + d);
    append(plan.draw_slot, draw, running.slot);
  }
  append(plan.window_start_loc, window + 1, plan.num_draws);
}

// reserved: what others still need for one token each.
void Scheduler::schedule(Running& running, StepPlan& plan, const Reserve& reserved) {
  int32_t wanted = 0;  // at most: what the rows share is counted twice
  for (Sequence& row : running.rows) {
    skip_filled(row);
    wanted += row.remaining();
  }
  const int32_t num_rows = static_cast<int32_t>(running.rows.size());
  const int32_t tokens = step_limits_.max_tokens - plan.num_tokens;
  const int32_t logits = step_limits_.max_logit_rows - plan.num_logit_rows;
  if (wanted > tokens || num_rows > logits || plan.num_draws >= step_limits_.max_draws) {
    // The last prompt token of both rows waits for the step that samples.
    for (Sequence& row : running.rows) {
      skip_filled(row);  // the row before may just have filled blocks that this one shares
      const int32_t left = step_limits_.max_tokens - plan.num_tokens;
      const int32_t count = std::min(left, row.remaining() - 1);
      if (count > 0) append_rows(running, row, count, plan);
    }
    return;
  }
  int32_t num_drafts = running.num_drafts_wanted;
  num_drafts = std::min(num_drafts, (std::min(tokens - wanted, logits - num_rows) - reserved.rows) / num_rows);
  num_drafts = std::min(num_drafts, step_limits_.max_draws - plan.num_draws - 1 - reserved.draws);
  append_window(running, std::max(num_drafts, 0), plan);
}

// Windows that stay as they are until the next plan. Their drafts are made by the device as it goes, so the chances of
// those that stood at each place before have to do. Powers of two, because every size of a step is a graph of its own.
void Scheduler::choose_steady_windows() {
  std::vector<DraftOffer> offers;
  std::vector<Running*> offering;
  int32_t base_rows = 0;
  double base_tokens = 0;
  for (Running& running : running_) {
    const Request& request = *running.request;
    if (request.codes.empty()) continue;
    const auto rows = static_cast<int32_t>(running.rows.size());
    base_rows += rows;
    base_tokens += 1;
    const int32_t left = request.num_image_tokens - static_cast<int32_t>(request.codes.size());
    const int32_t num_drafts = std::min(request.draft_window, left) - 1;
    std::vector<double> kept;
    for (int32_t i = 0; i < num_drafts; ++i) kept.push_back((i > 0 ? kept.back() : 1.0) * by_place_.of(place_of(i)));
    if (request.adapts_window) {
      offering.push_back(&running);
      offers.push_back({std::move(kept), rows});
    } else {
      base_rows += rows * num_drafts;
      base_tokens = std::accumulate(kept.begin(), kept.end(), base_tokens);
    }
  }
  if (offers.empty()) return;
  choose_windows(step_cost_, base_rows, base_tokens, offers);
  bool is_as_before = true;
  for (size_t i = 0; i < offers.size(); ++i) {
    const auto window = static_cast<int32_t>(std::bit_floor(static_cast<uint32_t>(offers[i].num_chosen + 1)));
    is_as_before &= window == offering[i]->steady_window;
    offering[i]->steady_window = window;
  }
  steps_between_choices_ = is_as_before ? std::min(2 * steps_between_choices_, kMostSteps) : kFewestSteps;
}

// What every picture that is being drawn would verify if the step has room for it.
void Scheduler::prepare_drafts() {
  std::vector<DraftOffer> offers;
  std::vector<Running*> offering;
  int32_t base_rows = 0;
  double base_tokens = 0;
  for (Running& running : running_) {
    const Request& request = *running.request;
    running.num_drafts_wanted = 0;
    if (request.codes.empty()) continue;
    const auto rows = static_cast<int32_t>(running.rows.size());
    base_rows += rows;
    base_tokens += 1;
    const int32_t left = request.num_image_tokens - 1 - static_cast<int32_t>(request.codes.size());
    DraftOffer offer{{}, rows};
    const bool adapts_now = request.adapts_window && !limits_.plans_ahead;
    const int32_t window = request.adapts_window && limits_.plans_ahead ? running.steady_window : request.draft_window;
    make_drafts(running.draft, std::min(window - 1, left), adapts_now ? kLeastChance : 0.0, context_table_, acceptance_,
                offer.kept);
    if (adapts_now) {
      offering.push_back(&running);
      offers.push_back(std::move(offer));
    } else {
      running.num_drafts_wanted = static_cast<int32_t>(offer.kept.size());
      base_rows += rows * running.num_drafts_wanted;
      for (double kept : offer.kept) base_tokens += kept;
    }
  }
  if (offers.empty()) return;
  choose_windows(step_cost_, base_rows, base_tokens, offers);
  for (size_t i = 0; i < offers.size(); ++i) offering[i]->num_drafts_wanted = offers[i].num_chosen;
}

void Scheduler::observe(const StepPlan& plan, double seconds) {
  // A step with prompts in it says little about one without.
  if (plan.num_tokens == plan.num_logit_rows && plan.num_draws > 0) step_cost_.observe(plan.num_tokens, seconds);
}

bool Scheduler::next(StepPlan& plan) {
  drop_cancelled();
  admit();
  if (limits_.plans_ahead) choose_steady_windows();
  fill(plan);
  return plan.num_tokens > 0;
}

int32_t Scheduler::steps_ahead(const StepPlan& plan) const {
  int32_t steps = std::numeric_limits<int32_t>::max(), num_tokens = 0;
  for (const Running& running : running_) {
    const Request& request = *running.request;
    if (running.num_draws == 0 || request.codes.empty()) return 1;
    // Drafts that only the host can make, and windows that it chooses for every step.
    if (request.draft_window > 1 && keeps_table(request.draft_source)) return 1;
    if (request.adapts_window) {
      if (!limits_.plans_ahead) return 1;
      steps = std::min(steps, steps_between_choices_);
    }
    num_tokens += running.num_draws * static_cast<int32_t>(running.rows.size());
    // A step yields as many tokens as it draws at most, and no window may reach beyond the end.
    const int32_t left = request.num_image_tokens - static_cast<int32_t>(request.codes.size());
    steps = std::min(steps, left / running.num_draws);
  }
  return num_tokens == plan.num_tokens ? std::max(steps, 1) : 1;
}

bool Scheduler::wants_change() const {
  const auto left = [](const Running& running) { return running.request->cancel_requested.load(); };
  return (!queue_.empty() && !free_slots_.empty()) || std::any_of(running_.begin(), running_.end(), left);
}

void Scheduler::again(StepPlan& plan) {
  const StepCounts before = plan.counts();
  fill(plan);
  check(plan.counts() == before, ErrorKind::kInternal, "scheduler: a batch that should have stayed as it was changed");
}

void Scheduler::fill(StepPlan& plan) {
  prepare_drafts();
  plan.counts() = {};
  plan.num_scores = 0;
  append(plan.query_start_loc, 0, int32_t{0});
  append(plan.window_start_loc, 0, int32_t{0});
  // Newcomers, too: the drafts of others may slow them down and never keep them out.
  Reserve reserved;
  for (Running& running : running_) {
    running.num_draws = running.num_scores = 0;
    reserved += need_of(running);
  }
  for (const bool drawing : {true, false})
    for (Running& running : running_) {
      if (drawing != !running.request->codes.empty()) continue;
      const int32_t before = plan.num_tokens;
      reserved -= need_of(running);
      if (before < step_limits_.max_tokens)
        running.request->is_scoring() ? schedule_scores(running, plan) : schedule(running, plan, reserved);
      running.request->num_steps += plan.num_tokens > before;
    }
}

void Scheduler::take_scores(Running& running, std::span<const float> logits) {
  Request& request = *running.request;
  const size_t width = limits_.num_codes;
  std::copy_n(logits.data() + running.first_logit_row * width, running.num_scores * width,
              request.scores.as<float>() + running.first_score * width);
  request.num_done = running.first_score + running.num_scores;
}

// What a step drew at the next places of an image.
void Scheduler::take_codes(Running& running, std::span<const int32_t> codes, int32_t num_drafts,
                           int32_t num_drafts_kept, const StepPlan& plan) {
  Request& request = *running.request;
  const auto number = static_cast<int32_t>(codes.size());
  if (request.codes.empty()) request.first_token = std::chrono::steady_clock::now();
  request.codes.insert(request.codes.end(), codes.begin(), codes.end());
  request.accepted_lens.push_back(number);
  request.draft_counts.add(num_drafts, num_drafts_kept);
  draft_counts_.add(num_drafts, num_drafts_kept);
  request.num_done = static_cast<int32_t>(request.codes.size());
  append(plan.last_code, running.slot, request.codes.back());
  for (Sequence& row : running.rows) {
    row.num_known += number;
    // The drafts that were right have their keys and values already.
    row.num_computed += number - 1;
  }
}

// Applies a rule of ratio_test.h to what the network says of the drafts.
void Scheduler::take_logits(Running& running, const StepPlan& plan, std::span<const float> logits) {
  Request& request = *running.request;
  const auto num_places = running.num_scores / static_cast<int32_t>(running.rows.size());
  const size_t width = limits_.num_codes;
  running.draft.drafts.resize(num_places - 1);
  std::vector<float> p(num_places * width);
  for (int32_t i = 0; i < num_places; ++i) {
    const auto row = [&](size_t at) { return logits.subspan((running.first_logit_row + at) * width, width); };
    const auto uncond = running.rows.size() == 2 ? row(num_places + i) : std::span<const float>();
    if (!draw_distribution(row(i), uncond, request.guidance_scale, request.temperature, request.top_k, request.top_p,
                           std::span(p).subspan(i * width, width))) {
      running.flawed_code = static_cast<int32_t>(request.codes.size()) + i;
      return;
    }
  }
  const Verdict verdict =
      test_drafts(request.draft_rule, running.draft, p, limits_.num_codes, request.seed,
                  static_cast<int32_t>(request.codes.size()), static_cast<int32_t>(request.accepted_lens.size()));
  request.log_probs.insert(request.log_probs.end(), verdict.log_probs.begin(), verdict.log_probs.end());
  take_codes(running, verdict.codes, num_places - 1, verdict.num_drafts_kept, plan);
}

// Keeps the drafts that were redrawn as they are, and the first token that was not.
void Scheduler::take_draws(Running& running, const StepPlan& plan) {
  Request& request = *running.request;
  const std::span drawn(plan.token.as<int32_t>() + running.first_draw, running.num_draws);
  const std::span log_probs(plan.log_prob.as<float>() + running.first_draw, running.num_draws);
  running.draft.drafts.resize(running.num_draws - 1);
  const int32_t accepted = accepted_length(running.draft.drafts, drawn, request.relaxed_levels);
  std::vector<int32_t> codes;
  for (int32_t i = 0; i < accepted; ++i) {
    if (drawn[i] < 0) {
      running.flawed_code = static_cast<int32_t>(request.codes.size()) + i;
      return;
    }
    codes.push_back(i + 1 < accepted ? running.draft.drafts[i].chosen.code : drawn[i]);
    // Of a neighbour's probability nothing is known.
    request.log_probs.push_back(codes[i] == drawn[i] ? log_probs[i] : std::numeric_limits<float>::quiet_NaN());
  }
  take_codes(running, codes, running.num_draws - 1, accepted - 1, plan);
  for (int32_t i = 0; i < std::min(accepted, running.num_draws - 1); ++i)
    by_place_.observe(place_of(i), i < accepted - 1);
  take_redraws(running.draft, accepted, drawn, log_probs, acceptance_);
  if (learns_drafts_ && request.draft_window > 1) learn_codes(running.draft, accepted, context_table_);
}

// What the step found out for one request.
void Scheduler::take(Running& running, const StepPlan& plan, std::span<const float> logits) {
  if (running.num_scores > 0 && running.request->is_scoring()) take_scores(running, logits);
  else if (running.num_scores > 0) take_logits(running, plan, logits);
  else if (running.num_draws > 0) take_draws(running, plan);
}

void Scheduler::commit(const StepPlan& plan, std::span<const float> logits) {
  // All of it before anybody leaves: an exception finds the batch whole.
  for (Running& running : running_) take(running, plan, logits);
  std::erase_if(running_, [&](Running& running) {
    Request& request = *running.request;
    if (running.flawed_code >= 0) {
      finish(running, RequestStatus::kFailed, ErrorKind::kNumerical,
             "the logits of image token " + std::to_string(running.flawed_code) +
                 " hold NaN or infinity: the weights or the guidance scale are out of range");
      return true;
    }
    if (request.num_done < request.num_image_tokens) return false;
    finish(running, RequestStatus::kFinished, ErrorKind::kInternal, "");
    return true;
  });
}

void Scheduler::finish(Running& running, RequestStatus status, ErrorKind kind, const std::string& message) {
  for (const Sequence& row : running.rows) allocator_.release(row.blocks);
  free_slots_.push_back(running.slot);
  end(*running.request, status, kind, message);
}

void Scheduler::fail_step(const std::string& message) {
  // Where nobody takes part, one of those who wait is the cause.
  if (running_.empty()) return fail_all(ErrorKind::kInternal, message);
  for (Running& running : running_) finish(running, RequestStatus::kFailed, ErrorKind::kInternal, message);
  running_.clear();
  forget_prefixes();  // blocks marked as filled may not be
}

void Scheduler::fail_all(ErrorKind kind, const std::string& message) {
  for (const auto& request : queue_) end(*request, RequestStatus::kFailed, kind, message);
  queue_.clear();
  for (Running& running : running_) finish(running, RequestStatus::kFailed, kind, message);
  running_.clear();
}

}  // namespace simplear
