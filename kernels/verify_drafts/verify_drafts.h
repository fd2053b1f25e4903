// The end of a step that draws: which codes are accepted, and the plan of the next step, derived from this one's.
//
// A window is what one image drew in the step: draws window_start_loc[w] .. window_start_loc[w + 1] - 1, the first of
// which follows its last known code; each of the others follows a guess, the token id of the row that it was drawn
// from.
//
//   accepted  a = 1 + the number of guesses, from the first on, that equal the code drawn in their place
//   codes     codes[slot, n .. n + a) = token of the first a draws, n = position of the first one; last_code[slot] the
//             last of them. A token of -1 (no number) counts as code 0: whoever reads the history sees that it was
//             none.
//   guesses   what was drawn behind them, up to the first -1; then, as far as the window goes, the code to the left of
//             each (source 0) or the one a row above (source 1; in the first row, the one to the left)
//   plan      positions, slot_mapping, token_ids of the rows that were drawn from, context_lens of their sequences and
//             position of the draws all move a codes on. token_ids: -1 (the slot's last code), then the guesses. Where
//             the block table ends, slot_mapping becomes -1.
//   history   drawn_token[step % H, d] = token[d], drawn_log_prob likewise, for every draw of a window; step += 1
//
// So a step of the same images can follow at once, without the host: with no guesses this is "every position plus one".
// The scheduler (csrc/core/scheduler.h) makes the same plan from the same draws. A window may be empty and names no
// sequence then. Row of a window and branch: logit_rows[cond_row[d]], logit_rows[uncond_row[d]]. No two windows share a
// row, a sequence or a slot. Reads and writes a few hundred bytes a window: latency is all that counts.
#pragma once

#include "core/op.h"

namespace simplear {

struct VerifyDraftsParams {
  const int32_t* window_start_loc;  // [W + 1] first draw of each window
  const int32_t* window_seqs;       // [W, 2] sequence of the conditional rows, of the unconditional ones or -1
  const int32_t* draft_source;      // [W] 0: left, 1: above
  const int32_t* draft_width;       // [W] codes in a row of the image; 0: unknown, and nothing is above
  const int32_t* logit_rows;        // [R] query row of each row of logits
  const int32_t* cond_row;          // [P] row of logits
  const int32_t* uncond_row;        // [P] row of logits, or -1
  const int32_t* draw_slot;         // [P]
  const int32_t* token;             // [P] drawn codes, or -1
  const float* log_prob;            // [P]
  const int32_t* block_table;       // [S, T] cache blocks in order of position
  int32_t* token_ids;               // [N] in/out
  int32_t* positions;               // [N] in/out
  int32_t* slot_mapping;            // [N] in/out: block * 16 + offset
  int32_t* context_lens;            // [S] in/out
  int32_t* position;                // [P] in/out: index of the code being drawn
  int32_t* last_code;               // [X] in/out, by slot
  int32_t* codes;                   // [X, C] in/out, by slot: all codes of an image so far
  int32_t* step;                    // [1] in/out
  int32_t* drawn_token;             // [H, D] in/out, D >= P
  float* drawn_log_prob;            // [H, D] in/out
  int32_t num_windows, num_logit_rows, num_draws, num_tokens, num_seqs, max_blocks_per_seq, num_slots, max_codes;
  int32_t history_length, history_width;
  int32_t visual_offset;  // text id of code 0
};

inline constexpr Field kVerifyDraftsFields[] = {
    SIMPLEAR_FIELD(VerifyDraftsParams, window_start_loc),
    SIMPLEAR_FIELD(VerifyDraftsParams, window_seqs),
    SIMPLEAR_FIELD(VerifyDraftsParams, draft_source),
    SIMPLEAR_FIELD(VerifyDraftsParams, draft_width),
    SIMPLEAR_FIELD(VerifyDraftsParams, logit_rows),
    SIMPLEAR_FIELD(VerifyDraftsParams, cond_row),
    SIMPLEAR_FIELD(VerifyDraftsParams, uncond_row),
    SIMPLEAR_FIELD(VerifyDraftsParams, draw_slot),
    SIMPLEAR_FIELD(VerifyDraftsParams, token),
    SIMPLEAR_FIELD(VerifyDraftsParams, log_prob),
    SIMPLEAR_FIELD(VerifyDraftsParams, block_table),
    SIMPLEAR_FIELD(VerifyDraftsParams, token_ids),
    SIMPLEAR_FIELD(VerifyDraftsParams, positions),
    SIMPLEAR_FIELD(VerifyDraftsParams, slot_mapping),
    SIMPLEAR_FIELD(VerifyDraftsParams, context_lens),
    SIMPLEAR_FIELD(VerifyDraftsParams, position),
    SIMPLEAR_FIELD(VerifyDraftsParams, last_code),
    SIMPLEAR_FIELD(VerifyDraftsParams, codes),
    SIMPLEAR_FIELD(VerifyDraftsParams, step),
    SIMPLEAR_FIELD(VerifyDraftsParams, drawn_token),
    SIMPLEAR_FIELD(VerifyDraftsParams, drawn_log_prob),
    SIMPLEAR_FIELD(VerifyDraftsParams, num_windows),
    SIMPLEAR_FIELD(VerifyDraftsParams, num_logit_rows),
    SIMPLEAR_FIELD(VerifyDraftsParams, num_draws),
    SIMPLEAR_FIELD(VerifyDraftsParams, num_tokens),
    SIMPLEAR_FIELD(VerifyDraftsParams, num_seqs),
    SIMPLEAR_FIELD(VerifyDraftsParams, max_blocks_per_seq),
    SIMPLEAR_FIELD(VerifyDraftsParams, num_slots),
    SIMPLEAR_FIELD(VerifyDraftsParams, max_codes),
    SIMPLEAR_FIELD(VerifyDraftsParams, history_length),
    SIMPLEAR_FIELD(VerifyDraftsParams, history_width),
    SIMPLEAR_FIELD(VerifyDraftsParams, visual_offset),
};

}  // namespace simplear
