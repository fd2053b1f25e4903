#include "kernels/verify_drafts/verify_drafts.h"

#include "cpu/simd.h"
#include "kernels/rope_append/rope_append.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

constexpr int32_t kAbove = 1;

// The guesses of a window for its next step: code `i` of the image, where i counts from the first one that is unknown.
struct Guesses {
  const int32_t* drawn;  // behind the accepted codes
  int32_t num_drawn;
  int32_t* image;  // the slot's codes; known ones up to `known`
  int32_t known, width;
  bool is_above;

  int32_t operator()(int32_t i) const {
    if (i < num_drawn) return drawn[i];
    const int32_t index = known + i;
    const int32_t from = index - (is_above && width > 0 && width <= index ? width : 1);
    return from < known ? image[from] : (*this)(from - known);
  }
};

void move_rows(const VerifyDraftsParams& p, int32_t begin, int32_t end, const int32_t* row, int32_t seq,
               int32_t accepted, const Guesses& guesses) {
  const int32_t first = p.positions[p.logit_rows[row[begin]]] + accepted;
  for (int32_t d = begin; d < end; ++d) {
    const int32_t n = p.logit_rows[row[d]], position = first + d - begin, block = position / kKvBlockSize;
    p.token_ids[n] = d == begin ? -1 : guesses(d - begin - 1) + p.visual_offset;
    p.positions[n] = position;
    p.slot_mapping[n] =
        block < p.max_blocks_per_seq
            ? p.block_table[int64_t{seq} * p.max_blocks_per_seq + block] * kKvBlockSize + position % kKvBlockSize
            : -1;
  }
  p.context_lens[seq] += accepted;
}

void verify_window(const VerifyDraftsParams& p, int32_t w) {
  const int32_t begin = p.window_start_loc[w], end = p.window_start_loc[w + 1], length = end - begin;
  if (length == 0) return;
  const int32_t* drawn = p.token + begin;
  const int64_t entry = int64_t{p.step[0] % p.history_length} * p.history_width;
  for (int32_t d = begin; d < end; ++d) {
    p.drawn_token[entry + d] = p.token[d];
    p.drawn_log_prob[entry + d] = p.log_prob[d];
  }
  int32_t accepted = 1;
  while (accepted < length &&
         p.token_ids[p.logit_rows[p.cond_row[begin + accepted]]] == drawn[accepted - 1] + p.visual_offset)
    ++accepted;
  const int32_t slot = p.draw_slot[begin], known = p.position[begin] + accepted;
  int32_t* image = p.codes + int64_t{slot} * p.max_codes;
  for (int32_t i = 0; i < accepted; ++i) image[known - accepted + i] = drawn[i] > 0 ? drawn[i] : 0;
  p.last_code[slot] = image[known - 1];
  for (int32_t i = 0; i < length; ++i) p.position[begin + i] = known + i;
  int32_t num_drawn = 0;
  while (num_drawn < length - accepted && drawn[accepted + num_drawn] >= 0) ++num_drawn;
  const Guesses guesses{drawn + accepted, num_drawn, image, known, p.draft_width[w], p.draft_source[w] == kAbove};
  const int32_t* seqs = p.window_seqs + 2 * w;
  if (seqs[0] >= 0) move_rows(p, begin, end, p.cond_row, seqs[0], accepted, guesses);
  if (seqs[1] >= 0) move_rows(p, begin, end, p.uncond_row, seqs[1], accepted, guesses);
}

void verify_drafts(const VerifyDraftsParams& p, ThreadPool&) {
  for (int32_t w = 0; w < p.num_windows; ++w) verify_window(p, w);
  p.step[0] += 1;
}

}  // namespace

SIMPLEAR_CPU_OP(verify_drafts, VerifyDraftsParams, kVerifyDraftsFields, verify_drafts);

}  // namespace simplear::SIMPLEAR_ISA
