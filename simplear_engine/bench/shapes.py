"""What a timed step consists of, and how a step plan says that.

`Shape` is the question (how many rows, how long their contexts); `fill` writes it into a plan as the scheduler would
for pictures in the middle of being drawn, with KV blocks of its own for every sequence. Knows nothing of time.
"""

import dataclasses
from dataclasses import dataclass

from simplear_engine.kernels.rope_append import BLOCK_SIZE


@dataclass(frozen=True)
class Shape:
    """rows query rows in guided pairs (an odd last one is not guided), each with `context` keys to read, its own too.

    With window > 1, one pair whose two sequences carry window rows each: the last known code and window - 1 drafts. The
    first of them reads `context` keys, each further one a key more.
    """

    rows: int
    context: int
    window: int = 1

    @property
    def num_seqs(self) -> int:
        return self.rows if self.window == 1 else 2

    @property
    def num_pairs(self) -> int:
        return (self.num_seqs + 1) // 2

    @property
    def context_lens(self) -> list[int]:
        """Keys of each sequence."""
        return [self.context + self.window - 1] * self.num_seqs

    @property
    def num_keys_of_rows(self) -> int:
        """Keys that all rows together attend to."""
        return self.num_seqs * sum(self.context + i for i in range(self.window))

    @property
    def blocks_per_seq(self) -> int:
        return -(-self.context_lens[0] // BLOCK_SIZE)

    @property
    def num_blocks(self) -> int:
        return self.num_seqs * self.blocks_per_seq


def with_window(window: int, context: int) -> Shape:
    return Shape(rows=2 * window, context=context, window=window)


def fill(plan, shape: Shape, model, pairs=None) -> None:
    """One whole step of `shape`, or what it holds of some guided pairs. Tokens are codes of `model` that differ from
    row to row and are the same every time."""
    _clear(plan)
    for pair in range(shape.num_pairs) if pairs is None else pairs:
        seqs = [seq for seq in (2 * pair, 2 * pair + 1) if seq < shape.num_seqs]
        first_rows = [_append(plan, shape, model, seq, range(shape.window)) for seq in seqs]
        for i in range(shape.window):
            _draw(plan, model, pair, i, [row + i for row in first_rows])


def fill_scoring(plan, shape: Shape, model, row: int | None = None) -> None:
    """The rows of the same step without its draws, so that their logits are stored; or one of them alone, when those
    before it in its sequence were computed."""
    _clear(plan)
    rows = range(shape.rows) if row is None else [row]
    for seq in range(shape.num_seqs):
        mine = [row - seq * shape.window for row in rows if row // shape.window == seq]
        if mine:
            _append(plan, shape, model, seq, mine)


def _clear(plan) -> None:
    plan.num_tokens = plan.num_seqs = plan.num_logit_rows = plan.num_draws = 0
    plan.query_start_loc.numpy()[0] = 0


def _append(plan, shape: Shape, model, seq: int, offsets) -> int:
    """The rows of sequence `seq` at these offsets from its first, each with its logits; returns the first one's row."""
    blocks = range(seq * shape.blocks_per_seq, (seq + 1) * shape.blocks_per_seq)
    begin = plan.num_tokens
    for row, offset in enumerate(offsets, begin):
        position = shape.context - 1 + offset
        code = (7919 * (seq * shape.window + offset) + 11) % model.num_codes
        plan.token_ids.numpy()[row] = model.visual_offset + code
        plan.token_slot.numpy()[row] = seq // 2
        plan.positions.numpy()[row] = position
        plan.slot_mapping.numpy()[row] = blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        plan.logit_rows.numpy()[row] = row
    plan.num_tokens = plan.num_logit_rows = begin + len(offsets)
    here = plan.num_seqs
    plan.query_start_loc.numpy()[here + 1] = plan.num_tokens
    plan.context_lens.numpy()[here] = shape.context + offsets[-1]
    plan.block_table.numpy()[here, : len(blocks)] = blocks
    plan.num_seqs = here + 1
    return begin


def _draw(plan, model, pair: int, position: int, rows: list[int]) -> None:
    """A code from one row of logits, or from a conditional and an unconditional one, as users get it by default."""
    values = {
        "cond_row": rows[0], "uncond_row": rows[1] if len(rows) > 1 else -1,
        "guidance_scale": 6.0 if len(rows) > 1 else 1.0, "temperature": 1.0, "top_k": model.num_codes, "top_p": 1.0,
        "seed": 7 + pair, "position": position, "draw_slot": pair,
    }  # fmt: skip
    for name, value in values.items():
        getattr(plan, name).numpy()[plan.num_draws] = value
    plan.num_draws += 1


def fields(shape: Shape) -> dict:
    return dataclasses.asdict(shape)
