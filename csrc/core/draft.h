// Guesses for the image tokens to come, so that one step can verify several of them.
//
// A guess costs nothing but its rows in the step: the engine redraws every guessed position with that position's own
// noise and keeps the longest run that comes out equal, so guesses never change an image (contract C3).
#pragma once

#include <cstdint>
#include <vector>

namespace simplear {

enum class DraftSource : int32_t {
  kLeft,   // the token before it, repeated
  kAbove,  // the token above it in the image
};

// Appends guesses to `drafts`, which follow `codes` in raster order, until there are `count` of them.
// width: tokens in a row of the image. Guesses nothing while `codes` is empty.
void extend_drafts(DraftSource source, int32_t width, const std::vector<int32_t>& codes, std::vector<int32_t>& drafts,
                   int32_t count);

// How many tokens a verified window yields: those drafts that equal what was redrawn in their place, and the token
// redrawn after them. drawn has one entry more than drafts.
int32_t accepted_length(const std::vector<int32_t>& drafts, const std::vector<int32_t>& drawn);

}  // namespace simplear
