"""Verification of drafts and the next step's plan in Triton: one program for a window, then one that counts the step."""

import triton
import triton.language as tl

from simplear_engine.kernels.rope_append import BLOCK_SIZE
from simplear_engine.kernels.triton_launch import Launch, fields, power_of_2


@triton.jit
def move_rows(
    logit_rows, row_of, block_table, token_ids, positions, slot_mapping, context_lens, draws, is_draw, ids, accepted, seq,
    max_blocks_per_seq, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """The rows of one branch go on to where their codes will stand."""
    if seq >= 0:
        rows = tl.load(logit_rows + tl.load(row_of + draws, mask=is_draw, other=0), mask=is_draw, other=0)
        moved = tl.load(positions + rows, mask=is_draw, other=0)
        i = tl.arange(0, ids.shape[0])
        moved = tl.sum(tl.where(i == 0, moved, 0), axis=0) + accepted + i
        block = moved // BLOCK_SIZE
        has_block = is_draw & (block < max_blocks_per_seq)
        cache_block = tl.load(block_table + seq * max_blocks_per_seq + block, mask=has_block, other=0)
        tl.store(positions + rows, moved, mask=is_draw)
        tl.store(token_ids + rows, ids, mask=is_draw)
        slots = tl.where(has_block, cache_block * BLOCK_SIZE + moved % BLOCK_SIZE, -1)
        tl.store(slot_mapping + rows, slots, mask=is_draw)
        tl.store(context_lens + seq, tl.load(context_lens + seq) + accepted)


@triton.jit
def verify_window(
    window_start_loc, window_seqs, draft_source, draft_width, logit_rows, cond_row, uncond_row, draw_slot, token, log_prob,
    block_table, token_ids, positions, slot_mapping, context_lens, position, last_code, codes, step, drawn_token,
    drawn_log_prob, visual_offset, max_blocks_per_seq, max_codes, history_length, history_width,
    BLOCK_SIZE: tl.constexpr, DRAWS: tl.constexpr,
):  # fmt: skip
    w = tl.program_id(0)
    begin, end = tl.load(window_start_loc + w), tl.load(window_start_loc + w + 1)
    length = end - begin
    if length > 0:
        i = tl.arange(0, DRAWS)
        draws, is_draw = begin + i, i < length
        drawn = tl.load(token + draws, mask=is_draw, other=-1)
        history = (tl.load(step) % history_length).to(tl.int64) * history_width + draws
        tl.store(drawn_token + history, drawn, mask=is_draw)
        tl.store(drawn_log_prob + history, tl.load(log_prob + draws, mask=is_draw, other=0), mask=is_draw)

        # The i-th draw was drawn behind a guess for the one before it.
        is_guess = is_draw & (i > 0)
        rows = tl.load(logit_rows + tl.load(cond_row + draws, mask=is_draw, other=0), mask=is_draw, other=0)
        guessed = tl.load(token_ids + rows, mask=is_guess, other=0) - visual_offset
        is_wrong = is_guess & (guessed != tl.load(token + draws - 1, mask=is_guess, other=0))
        accepted = tl.min(tl.where(is_wrong, i, length), axis=0)

        known, slot = tl.load(position + begin), tl.load(draw_slot + begin)
        image = codes + slot.to(tl.int64) * max_codes
        kept = tl.maximum(drawn, 0)
        tl.store(image + known + i, kept, mask=i < accepted)
        last = tl.sum(tl.where(i == accepted - 1, kept, 0), axis=0)
        tl.store(last_code + slot, last)
        tl.store(position + draws, known + accepted + i, mask=is_draw)

        # ids[i] becomes the guess that stands i - 1 places behind the accepted codes.
        num_drawn = tl.min(tl.where(is_draw & (i >= accepted) & (drawn < 0), i, length), axis=0) - accepted
        ids = tl.full([DRAWS], -1, tl.int32)
        source, width = tl.load(draft_source + w), tl.load(draft_width + w)
        for j in range(1, length):
            if j <= num_drawn:
                last = tl.sum(tl.where(i == accepted + j - 1, drawn, 0), axis=0)
            else:
                at = known + accepted + j - 1
                if (source == 1) & (width > 0) & (width <= at):
                    at -= width
                    if at < known:
                        last = tl.load(image + at)
                    elif at < known + accepted:
                        last = tl.sum(tl.where(i == at - known, kept, 0), axis=0)
                    else:
                        last = tl.sum(tl.where(i == at - known - accepted + 1, ids, 0), axis=0)
            ids = tl.where(i == j, last, ids)
        ids = tl.where(i > 0, ids + visual_offset, -1)
        move_rows(
            logit_rows, cond_row, block_table, token_ids, positions, slot_mapping, context_lens, draws, is_draw, ids,
            accepted, tl.load(window_seqs + 2 * w), max_blocks_per_seq, BLOCK_SIZE,
        )  # fmt: skip
        move_rows(
            logit_rows, uncond_row, block_table, token_ids, positions, slot_mapping, context_lens, draws, is_draw, ids,
            accepted, tl.load(window_seqs + 2 * w + 1), max_blocks_per_seq, BLOCK_SIZE,
        )  # fmt: skip


@triton.jit
def count_step(step):
    tl.store(step, tl.load(step) + 1)


def launches(p, scratch):
    if p.num_windows > 0:
        yield Launch(
            verify_window,
            (p.num_windows,),
            fields(
                p,
                "window_start_loc",
                "window_seqs",
                "draft_source",
                "draft_width",
                "logit_rows",
                "cond_row",
                "uncond_row",
                "draw_slot",
                "token",
                "log_prob",
                "block_table",
                "token_ids",
                "positions",
                "slot_mapping",
                "context_lens",
                "position",
                "last_code",
                "codes",
                "step",
                "drawn_token",
                "drawn_log_prob",
                "visual_offset",
                "max_blocks_per_seq",
                "max_codes",
                "history_length",
                "history_width",
            ),  # fmt: skip
            {"BLOCK_SIZE": BLOCK_SIZE, "DRAWS": power_of_2(max(p.num_draws, 2))},
            # One warp: what its threads read has been read before any of them writes.
            num_warps=1,
        )
    yield Launch(count_step, (1,), fields(p, "step"), {}, num_warps=1)
