#include "core/draft.h"

#include <algorithm>
#include <cstdlib>

#include "core/check.h"
#include "core/lattice.h"

namespace simplear {
namespace {

constexpr uint32_t kContexts[] = {
    kPrompt | kPosition | kLeftCode | kAboveCode,
    kLeftCode | kLeft2Code | kAboveCode | kAboveLeftCode | kAboveRightCode | kAbove2Code,
    kLeftCode | kAboveCode | kAboveLeftCode | kAboveRightCode,
    kLeftCode | kAboveCode | kAboveLeftCode,
    kLeftCode | kAboveCode,
    kLeftCode | kLeft2Code,
};
constexpr uint32_t kMarginalContexts[] = {kPosition};
constexpr uint32_t kPreviousContexts[] = {kPrompt | kPosition};

// Kinds of fresh guesses: one for each source, and for what a table says one for each degree of sureness. Kinds of
// redraws: by distance from the last known token, by their probability, by whether the source agrees.
constexpr float kShares[] = {0.3f, 0.5f, 0.65f, 0.75f, 0.85f, 0.92f, 0.96f};
constexpr uint8_t kFirstTableKind = 8, kFirstRedrawKind = kFirstTableKind + std::size(kShares) + 1;
constexpr float kLogProbs[] = {-1.0f, -0.1f, -0.01f};
constexpr int kNumDistances = 3, kNumLogProbs = std::size(kLogProbs) + 1;
constexpr uint8_t kAnyRedraw = kFirstRedrawKind + 2 * kNumDistances * kNumLogProbs;  // all of them together
static_assert(kAnyRedraw < Acceptance::kNumKinds);

template <size_t N>
int degree(const float (&bounds)[N], float value) {
  return static_cast<int>(std::upper_bound(bounds, bounds + N, value) - bounds);
}

uint8_t redraw_kind(const Redraw& redraw, int32_t distance, bool source_agrees) {
  const int near = std::min(distance, kNumDistances - 1);
  return static_cast<uint8_t>(kFirstRedrawKind + (2 * near + source_agrees) * kNumLogProbs +
                              degree(kLogProbs, redraw.log_prob));
}

// Code at `position` among the known ones and the drafts.
int32_t code_at(const DraftState& state, int32_t position) {
  const auto known = static_cast<int32_t>(state.codes->size());
  return position < known ? (*state.codes)[position] : state.drafts[position - known].chosen.code;
}

Surroundings surroundings(const DraftState& state, int32_t position) {
  const int32_t width = state.width > 0 ? state.width : position + 1, x = position % width;
  const auto code = [&](bool exists, int32_t at) { return exists && at >= 0 ? code_at(state, at) : -1; };
  Surroundings a;
  a.left = code(x >= 1, position - 1);
  a.left2 = code(x >= 2, position - 2);
  a.above = code(true, position - width);
  a.above_left = code(x >= 1, position - width - 1);
  a.above_right = code(x + 1 < width, position - width + 1);
  a.above2 = code(true, position - 2 * width);
  a.position = position;
  a.prompt = state.prompt;
  return a;
}

Guess fresh_guess(const DraftState& state, int32_t position, const ContextTable& table) {
  const auto kind = static_cast<uint8_t>(state.source);
  switch (state.source) {
    case DraftSource::kLeft: return {code_at(state, position - 1), kind};
    case DraftSource::kAbove:
      return {code_at(state, position - (state.width > 0 && position >= state.width ? state.width : 1)), kind};
    case DraftSource::kGiven:
      return {position < static_cast<int32_t>(state.proposal->size()) ? (*state.proposal)[position] : -1, kind};
    default: break;
  }
  const auto [code, share] = table.predict(surroundings(state, position), contexts_of(state.source));
  // A source that knows nothing repeats the code to the left: any guess is better than none.
  if (code < 0) return {code_at(state, position - 1), kind};
  return {code, static_cast<uint8_t>(kFirstTableKind + degree(kShares, share))};
}

}  // namespace

void DraftCounts::add(int32_t verified, int32_t kept) {
  if (static_cast<int32_t>(num_verified.size()) < verified) {
    num_verified.resize(verified);
    num_kept.resize(verified);
  }
  for (int32_t i = 0; i < verified; ++i) {
    ++num_verified[i];
    num_kept[i] += i < kept;
  }
}

std::span<const uint32_t> contexts_of(DraftSource source) {
  switch (source) {
    case DraftSource::kContext: return kContexts;
    case DraftSource::kMarginal: return kMarginalContexts;
    case DraftSource::kPrevious: return kPreviousContexts;
    default: return {};
  }
}

void make_drafts(DraftState& state, int32_t count, double least, const ContextTable& table,
                 const Acceptance& acceptance, std::vector<double>& kept) {
  state.drafts.clear();
  kept.clear();
  const auto known = static_cast<int32_t>(state.codes->size());
  if (known == 0) return;
  double chance = 1.0;
  for (int32_t i = 0; i < count; ++i) {
    Draft draft{fresh_guess(state, known + i, table), {}};
    if (i < static_cast<int32_t>(state.redraws.size())) {
      const Redraw& redraw = state.redraws[i];
      draft.other = {redraw.code, redraw_kind(redraw, i, redraw.code == draft.chosen.code)};
      if (!keeps_table(state.source) || draft.chosen.code < 0 ||
          acceptance.of(draft.other.kind) >= acceptance.of(draft.chosen.kind))
        std::swap(draft.chosen, draft.other);
    }
    if (draft.chosen.code < 0) return;
    // A guess that is verified now and wrong is a redraw in the next step. Where redraws are right more often than such
    // guesses, that is what it is worth: nobody would ever begin with guesses that are seldom right otherwise.
    chance *= std::max(acceptance.of(draft.chosen.kind), acceptance.of(kAnyRedraw));
    if (chance < least) return;
    state.drafts.push_back(draft);
    kept.push_back(chance);
  }
}

void learn_codes(const DraftState& state, int32_t count, ContextTable& table) {
  const std::span<const uint32_t> contexts = contexts_of(state.source);
  if (contexts.empty()) return;
  const auto known = static_cast<int32_t>(state.codes->size());
  for (int32_t position = known - count; position < known; ++position)
    table.learn(surroundings(state, position), contexts, (*state.codes)[position]);
}

int32_t accepted_length(const std::vector<Draft>& drafts, std::span<const int32_t> drawn,
                        std::span<const int32_t> relaxed_levels) {
  check(drawn.size() == drafts.size() + 1, ErrorKind::kInternal, "verification: ", drafts.size(), " drafts, ",
        drawn.size(), " drawn tokens");
  int32_t length = 1;
  while (length <= static_cast<int32_t>(drafts.size()) &&
         are_neighbours(drafts[length - 1].chosen.code, drawn[length - 1], relaxed_levels))
    ++length;
  return length;
}

void take_redraws(DraftState& state, int32_t accepted, std::span<const int32_t> drawn, std::span<const float> log_probs,
                  Acceptance& acceptance) {
  // Of the drafts, the accepted ones and the one that was corrected had nothing but right codes before them.
  const int32_t judged = std::min<int32_t>(accepted, state.drafts.size());
  for (int32_t i = 0; i < judged; ++i)
    for (const Guess& guess : {state.drafts[i].chosen, state.drafts[i].other})
      if (guess.code >= 0) {
        acceptance.observe(guess.kind, guess.code == drawn[i]);
        if (guess.kind >= kFirstRedrawKind) acceptance.observe(kAnyRedraw, guess.code == drawn[i]);
      }
  state.drafts.clear();
  // A draw behind a wrong draft is a guess. -1, which stands for numbers that are none, can not be guessed.
  std::vector<Redraw> redraws;
  for (size_t i = accepted; i < drawn.size() && drawn[i] >= 0; ++i) redraws.push_back({drawn[i], log_probs[i]});
  // Behind a window that was shorter than the last one, older guesses are still the best.
  if (keeps_table(state.source) && accepted + redraws.size() == drawn.size() && drawn.size() < state.redraws.size())
    redraws.insert(redraws.end(), state.redraws.begin() + static_cast<ptrdiff_t>(drawn.size()), state.redraws.end());
  state.redraws = std::move(redraws);
}

}  // namespace simplear
