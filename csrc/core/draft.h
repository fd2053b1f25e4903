// Guesses for the image tokens to come, so that one step can verify several of them.
//
// A guess costs nothing but its rows in the step: the engine redraws every guessed position with that position's own
// noise and keeps the longest run that comes out equal, so guesses never change an image (contract C3). Two guesses
// compete for a position: what an earlier step drew there behind a wrong draft (Jacobi iteration with coupled noise),
// and what the draft source says. The one whose kind has been right more often is verified.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/acceptance.h"
#include "core/context_table.h"

namespace simplear {

enum class DraftSource : int32_t {
  kLeft,      // the token before it, repeated
  kAbove,     // the token above it in the image
  kContext,   // the code that followed such neighbours in earlier images
  kMarginal,  // the code that stood most often at this position
  kPrevious,  // the code that stood most often at this position for this prompt
  kGiven,     // the request's own proposal
};

// Whether guesses depend on more than the image's own codes. Those of the other sources can be made on a device, where
// a step derives the next one (kernels/verify_drafts), and there redraws always win.
inline bool keeps_table(DraftSource source) { return source != DraftSource::kLeft && source != DraftSource::kAbove; }

// The contexts that a source looks up and learns, the most telling first; none for sources that keep no table.
std::span<const uint32_t> contexts_of(DraftSource source);

// By place in the window, from the first draft on: how many drafts were verified, and how many of them kept.
struct DraftCounts {
  std::vector<int64_t> num_verified, num_kept;
  void add(int32_t verified, int32_t kept);
};

struct Guess {
  int32_t code = -1;  // -1: none
  uint8_t kind = 0;   // of Acceptance
};

struct Draft {
  Guess chosen, other;
};

// What a step drew at a position whose predecessors were not all right.
struct Redraw {
  int32_t code = -1;
  float log_prob = 0.0f;
};

// What the guesses for one image are made from.
struct DraftState {
  DraftSource source = DraftSource::kContext;
  int32_t width = 0;                               // tokens in a row of the image; 0: unknown
  uint64_t prompt = 0;                             // hash
  const std::vector<int32_t>* codes = nullptr;     // known, in raster order
  const std::vector<int32_t>* proposal = nullptr;  // of kGiven
  std::vector<Redraw> redraws;                     // of the positions behind the known ones
  std::vector<float> redraw_probs;                 // [redraws, codes] what they were drawn from; of ratio_test.h
  std::vector<Draft> drafts;                       // likewise
};

// Makes drafts anew, at most `count`. Stops early where the chance that a draft and all before it are right falls below
// `least`. kept: that chance, for each draft, of which none counts for less than redraws do (decision 0011).
void make_drafts(DraftState& state, int32_t count, double least, const ContextTable& table,
                 const Acceptance& acceptance, std::vector<double>& kept);

// Notes the last `count` known codes of an image in the table.
void learn_codes(const DraftState& state, int32_t count, ContextTable& table);

// How many tokens a verified window yields: those drafts that equal what was redrawn in their place (or are its
// neighbours on the lattice of relaxed_levels), and the token redrawn after them. drawn has one entry more than drafts.
int32_t accepted_length(const std::vector<Draft>& drafts, std::span<const int32_t> drawn,
                        std::span<const int32_t> relaxed_levels);

// Takes over what a step drew: how often each kind of guess was right, and what was redrawn behind the first wrong
// draft.
void take_redraws(DraftState& state, int32_t accepted, std::span<const int32_t> drawn, std::span<const float> log_probs,
                  Acceptance& acceptance);

}  // namespace simplear
