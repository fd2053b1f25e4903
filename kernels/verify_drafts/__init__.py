"""Verification of drafts and the next step's plan; see verify_drafts.h."""

import numpy as np

from simplear_engine.kernels.op import F32, I32, Case, In, InOut, Op
from simplear_engine.kernels.rope_append import BLOCK_SIZE

LEFT, ABOVE = 0, 1


def reference(
    window_start_loc, window_seqs, draft_source, draft_width, logit_rows, cond_row, uncond_row, draw_slot, token,
    log_prob, block_table, token_ids, positions, slot_mapping, context_lens, position, last_code, codes, step,
    drawn_token, drawn_log_prob, visual_offset,
):  # fmt: skip
    out = {
        "token_ids": token_ids.copy(), "positions": positions.copy(), "slot_mapping": slot_mapping.copy(),
        "context_lens": context_lens.copy(), "position": position.copy(), "last_code": last_code.copy(),
        "codes": codes.copy(), "step": step + 1, "drawn_token": drawn_token.copy(),
        "drawn_log_prob": drawn_log_prob.copy(),
    }  # fmt: skip
    entry = step[0] % len(drawn_token)
    for w, (begin, end) in enumerate(zip(window_start_loc[:-1], window_start_loc[1:], strict=True)):
        if begin == end:
            continue
        draws, drawn = np.arange(begin, end), token[begin:end].tolist()
        out["drawn_token"][entry, draws], out["drawn_log_prob"][entry, draws] = drawn, log_prob[begin:end]
        guesses = (token_ids[logit_rows[cond_row[draws[1:]]]] - visual_offset).tolist()
        accepted = 1
        while accepted < len(drawn) and guesses[accepted - 1] == drawn[accepted - 1]:
            accepted += 1
        known, slot = position[begin], draw_slot[begin]
        image = codes[slot, :known].tolist() + [max(code, 0) for code in drawn[:accepted]]
        out["codes"][slot, known : known + accepted] = image[known:]
        out["last_code"][slot] = image[-1]
        out["position"][draws] = len(image) + np.arange(len(drawn))

        image_length = len(image)
        for code in drawn[accepted:]:
            if code < 0:
                break
            image.append(code)
        while len(image) < image_length + len(drawn) - 1:
            above = draft_source[w] == ABOVE and 0 < draft_width[w] <= len(image)
            image.append(image[-draft_width[w] if above else -1])
        ids = [-1] + [code + visual_offset for code in image[image_length:]]
        for seq, row in ((window_seqs[w, 0], cond_row), (window_seqs[w, 1], uncond_row)):
            if seq < 0:
                continue
            rows = logit_rows[row[draws]]
            moved = positions[rows[0]] + accepted + np.arange(len(drawn))
            block = moved // BLOCK_SIZE
            has_block = block < block_table.shape[1]
            cache_block = block_table[seq, np.where(has_block, block, 0)]
            out["positions"][rows], out["token_ids"][rows] = moved, ids
            out["slot_mapping"][rows] = np.where(has_block, cache_block * BLOCK_SIZE + moved % BLOCK_SIZE, -1)
            out["context_lens"][seq] += accepted
    return out


def make_inputs(case, rng):
    """Windows of the case's lengths (0: padding), guided and not; of the guesses, the first few right."""
    a, lengths = case.axes, LENGTHS[case.axes["W"]]
    offset, codes_known = case.scalars["visual_offset"], a["C"] // 2
    window_start_loc = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    inputs = {
        "window_start_loc": window_start_loc,
        "window_seqs": np.full((a["W"], 2), -1, np.int32),
        "draft_source": rng.integers(0, 2, a["W"]).astype(np.int32),
        "draft_width": rng.choice([0, 1, 3, 7, a["C"]], a["W"]).astype(np.int32),
        "logit_rows": rng.permutation(a["N"])[: a["R"]].astype(np.int32),
        "cond_row": np.zeros(a["P"], np.int32),
        "uncond_row": np.full(a["P"], -1, np.int32),
        "draw_slot": np.full(a["P"], a["X"] - 1, np.int32),
        "token": rng.integers(0, 5, a["P"]).astype(np.int32),
        "log_prob": rng.standard_normal(a["P"]).astype(np.float32),
        "block_table": rng.integers(0, 1000, (a["S"], a["T"])).astype(np.int32),
        "token_ids": rng.integers(0, offset, a["N"]).astype(np.int32),
        "positions": rng.integers(0, 16, a["N"]).astype(np.int32),
        "slot_mapping": rng.integers(-1, 1000, a["N"]).astype(np.int32),
        "context_lens": rng.integers(0, 99, a["S"]).astype(np.int32),
        "position": rng.integers(0, codes_known, a["P"]).astype(np.int32),
        "last_code": rng.integers(0, 5, a["X"]).astype(np.int32),
        "codes": rng.integers(0, 5, (a["X"], a["C"])).astype(np.int32),
        "step": np.array([case.scalars["visual_offset"] % 7], np.int32),
        "drawn_token": np.full((a["H"], a["D"]), -7, np.int32),
        "drawn_log_prob": np.full((a["H"], a["D"]), -7, np.float32),
    }
    seqs, slots, rows = iter(rng.permutation(a["S"])), rng.permutation(a["X"] - 1), iter(range(a["R"]))
    for w, length in enumerate(lengths):
        if length == 0:
            continue
        draws = np.arange(window_start_loc[w], window_start_loc[w + 1])
        inputs["draw_slot"][draws] = slots[w]
        inputs["position"][draws] = inputs["position"][draws[0]] + np.arange(length)
        num_right = int(rng.integers(0, length))
        # Somewhere in the last windows the logits were not finite.
        if w >= 3:
            inputs["token"][draws[length // 2]] = -1
        for branch in range(2 if w % 3 else 1):
            inputs["window_seqs"][w, branch] = next(seqs)
            name = ("cond_row", "uncond_row")[branch]
            inputs[name][draws] = [next(rows) for _ in draws]
            query_rows = inputs["logit_rows"][inputs[name][draws]]
            # Every other window goes beyond the block table.
            end = a["T"] * BLOCK_SIZE - length
            inputs["positions"][query_rows] = (end if w % 2 else rng.integers(0, end - length)) + np.arange(length)
            inputs["token_ids"][query_rows[1:]] = inputs["token"][draws[:-1]] + offset
            inputs["token_ids"][query_rows[1 + num_right :]] = offset + 5
    return inputs


# Draws of each window, by number of windows.
LENGTHS = {1: [1], 2: [8, 0], 5: [1, 3, 1, 64, 2], 9: [1] * 7 + [0, 0], 70: [1, 2] * 35}


def case(lengths, offset, history):
    draws, windows = sum(lengths), len(lengths)
    axes = {
        "W": windows, "P": draws + 3, "R": 2 * draws + 1, "N": 2 * draws + 5, "S": 2 * windows + 1, "T": 11,
        "X": windows + 1, "C": 200, "H": history, "D": draws + 4,
    }  # fmt: skip
    return Case(axes, {}, {"visual_offset": offset})


OP = Op(
    name="verify_drafts",
    axes={
        "W": "num_windows",
        "R": "num_logit_rows",
        "P": "num_draws",
        "N": "num_tokens",
        "S": "num_seqs",
        "T": "max_blocks_per_seq",
        "X": "num_slots",
        "C": "max_codes",
        "H": "history_length",
        "D": "history_width",
    },
    args={
        "window_start_loc": In("W+1", I32),
        "window_seqs": In("W, 2", I32),
        "draft_source": In("W", I32),
        "draft_width": In("W", I32),
        "logit_rows": In("R", I32),
        "cond_row": In("P", I32),
        "uncond_row": In("P", I32),
        "draw_slot": In("P", I32),
        "token": In("P", I32),
        "log_prob": In("P", F32),
        "block_table": In("S, T", I32),
        "token_ids": InOut("N", I32),
        "positions": InOut("N", I32),
        "slot_mapping": InOut("N", I32),
        "context_lens": InOut("S", I32),
        "position": InOut("P", I32),
        "last_code": InOut("X", I32),
        "codes": InOut("X, C", I32),
        "step": InOut("1", I32),
        "drawn_token": InOut("H, D", I32),
        "drawn_log_prob": InOut("H, D", F32),
    },
    scalars={"visual_offset": None},
    reference=reference,
    make_inputs=make_inputs,
    test_cases=[case(lengths, 11 + i, 1 + 2 * i) for i, lengths in enumerate(LENGTHS.values())],
    bench_cases=[case(LENGTHS[windows], 151672, 32) for windows in (1, 2, 9)],
    tolerance=lambda case: (0, 0),
    bytes_moved=lambda a, dtypes: 4 * (12 * a["P"] + 6 * a["N"] + 2 * a["S"] + 5 * a["W"]),
    moves_on=True,
)
