// One block for all windows, a warp for each: a chain of a few dependent reads, so latency is all that counts, and one
// block can move the step on when every window has read it.
#include "cuda/ptx.h"
#include "kernels/rope_append/rope_append.h"
#include "kernels/verify_drafts/verify_drafts.h"

namespace simplear::SIMPLEAR_GPU {
namespace {

constexpr int kMaxWarps = 32;
constexpr int32_t kAbove = 1;

// The guesses of a window for its next step: code `i` of the image, where i counts from the first one that is unknown.
struct Guesses {
  const int32_t* drawn;  // behind the accepted codes
  int32_t num_drawn;
  const int32_t* image;  // the slot's codes; known ones up to `known`
  int32_t known, width;
  bool is_above;

  __device__ int32_t operator()(int32_t i) const {
    while (i >= num_drawn) {
      const int32_t index = known + i;
      const int32_t from = index - (is_above && width > 0 && width <= index ? width : 1);
      if (from < known) return image[from];
      i = from - known;
    }
    return drawn[i];
  }
};

// The first i in begin .. end - 1 with is_found(i), or end. By one warp; every lane gets it.
template <class IsFound>
__device__ int32_t find_first(int32_t begin, int32_t end, const IsFound& is_found) {
  const int32_t lane = threadIdx.x % 32;
  for (int32_t base = begin; base < end; base += 32) {
    const unsigned found = __ballot_sync(0xffffffffu, base + lane < end && is_found(base + lane));
    if (found != 0) return base + __ffs(static_cast<int>(found)) - 1;
  }
  return end;
}

__device__ void move_rows(const VerifyDraftsParams& p, int32_t begin, int32_t end, const int32_t* row, int32_t seq,
                          int32_t accepted, const Guesses& guesses) {
  const int32_t first = p.positions[p.logit_rows[row[begin]]] + accepted;
  __syncwarp();
  for (int32_t d = begin + static_cast<int32_t>(threadIdx.x % 32); d < end; d += 32) {
    const int32_t n = p.logit_rows[row[d]], position = first + d - begin, block = position / kKvBlockSize;
    p.token_ids[n] = d == begin ? -1 : guesses(d - begin - 1) + p.visual_offset;
    p.positions[n] = position;
    p.slot_mapping[n] =
        block < p.max_blocks_per_seq
            ? p.block_table[int64_t{seq} * p.max_blocks_per_seq + block] * kKvBlockSize + position % kKvBlockSize
            : -1;
  }
  if (threadIdx.x % 32 == 0) p.context_lens[seq] += accepted;
}

__device__ void verify_window(const VerifyDraftsParams& p, int32_t w, int32_t step) {
  const int32_t lane = threadIdx.x % 32;
  const int32_t begin = p.window_start_loc[w], end = p.window_start_loc[w + 1], length = end - begin;
  if (length == 0) return;
  const int32_t* drawn = p.token + begin;
  const int64_t entry = int64_t{step % p.history_length} * p.history_width;
  for (int32_t d = begin + lane; d < end; d += 32) {
    p.drawn_token[entry + d] = p.token[d];
    p.drawn_log_prob[entry + d] = p.log_prob[d];
  }
  const int32_t accepted = find_first(1, length, [&](int32_t i) {
    return p.token_ids[p.logit_rows[p.cond_row[begin + i]]] != drawn[i - 1] + p.visual_offset;
  });
  const int32_t num_drawn = find_first(accepted, length, [&](int32_t i) { return drawn[i] < 0; }) - accepted;
  const int32_t slot = p.draw_slot[begin], first = p.position[begin], known = first + accepted;
  __syncwarp();  // what was read above may be written below
  int32_t* image = p.codes + int64_t{slot} * p.max_codes;
  for (int32_t i = lane; i < accepted; i += 32) image[first + i] = max(drawn[i], 0);
  for (int32_t i = lane; i < length; i += 32) p.position[begin + i] = known + i;
  if (lane == 0) p.last_code[slot] = max(drawn[accepted - 1], 0);
  __syncwarp();  // guesses repeat codes of the image
  const Guesses guesses{drawn + accepted, num_drawn, image, known, p.draft_width[w], p.draft_source[w] == kAbove};
  const int32_t* seqs = p.window_seqs + 2 * w;
  if (seqs[0] >= 0) move_rows(p, begin, end, p.cond_row, seqs[0], accepted, guesses);
  if (seqs[1] >= 0) move_rows(p, begin, end, p.uncond_row, seqs[1], accepted, guesses);
}

__global__ void __launch_bounds__(32 * kMaxWarps, 1) verify_windows(VerifyDraftsParams p) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int32_t step = p.step[0], num_warps = blockDim.x / 32;
  for (int32_t w = threadIdx.x / 32; w < p.num_windows; w += num_warps) verify_window(p, w, step);
  __syncthreads();
  if (threadIdx.x == 0) p.step[0] = step + 1;
}

void verify_drafts(const VerifyDraftsParams& p, Launcher& launcher) {
  launch(launcher, "verify_drafts", verify_windows, {dim3(1), dim3(32 * std::clamp(p.num_windows, 1, kMaxWarps))}, p);
}

}  // namespace

SIMPLEAR_CUDA_OP(verify_drafts, VerifyDraftsParams, kVerifyDraftsFields, verify_drafts);

}  // namespace simplear::SIMPLEAR_GPU
