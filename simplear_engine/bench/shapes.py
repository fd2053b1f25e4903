"""What a timed step consists of, and how a step plan says that.

`Shape` is the question (how many rows, how long their contexts); `fill` writes it into a plan as the scheduler would for
pictures in the middle of being drawn, with KV blocks of its own for every sequence. Knows nothing of models or of time.
"""

import dataclasses
from dataclasses import dataclass

from simplear_engine.kernels.rope_append import BLOCK_SIZE


@dataclass(frozen=True)
class Shape:
    """rows query rows in guided pairs (an odd last one is not guided), each with `context` keys to read, its own included.

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


def fill(plan, shape: Shape, model) -> None:
    """One whole step of `shape`. Tokens are codes of `model` that differ from row to row and are the same every time."""
    _clear(plan)
    for seq in range(shape.num_seqs):
        _append(plan, shape, model, seq, first=0, count=shape.window)
    for pair in range(shape.num_pairs):
        cond, uncond = 2 * pair, 2 * pair + 1
        for i in range(shape.window):
            is_guided = uncond < shape.num_seqs
            _draw(plan, model, pair, cond * shape.window + i, uncond * shape.window + i if is_guided else -1)


def fill_one_row(plan, shape: Shape, model, row: int) -> None:
    """The same step's row `row` and nothing else. Rows before it in its sequence must have been computed."""
    _clear(plan)
    _append(plan, shape, model, row // shape.window, first=row % shape.window, count=1)
    _draw(plan, model, slot=0, cond_row=0, uncond_row=-1)


def _clear(plan) -> None:
    plan.num_tokens = plan.num_seqs = plan.num_logit_rows = plan.num_draws = 0
    plan.query_start_loc.numpy()[0] = 0


def _append(plan, shape: Shape, model, seq: int, first: int, count: int) -> None:
    """Rows first..first+count-1 of sequence `seq`."""
    blocks = range(seq * shape.blocks_per_seq, (seq + 1) * shape.blocks_per_seq)
    n = plan.num_tokens
    for i in range(first, first + count):
        position, row = shape.context - 1 + i, plan.num_tokens
        code = (7919 * (seq * shape.window + i) + 11) % model.num_codes
        plan.token_ids.numpy()[row] = model.visual_offset + code
        plan.token_slot.numpy()[row] = plan.num_seqs // 2
        plan.positions.numpy()[row] = position
        plan.slot_mapping.numpy()[row] = blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        plan.logit_rows.numpy()[plan.num_logit_rows] = row
        plan.num_logit_rows += 1
        plan.num_tokens += 1
    here = plan.num_seqs
    plan.query_start_loc.numpy()[here + 1] = n + count
    plan.context_lens.numpy()[here] = shape.context + first + count - 1
    plan.block_table.numpy()[here, : len(blocks)] = blocks
    plan.num_seqs = here + 1


def _draw(plan, model, slot: int, cond_row: int, uncond_row: int) -> None:
    values = {
        "cond_row": cond_row, "uncond_row": uncond_row, "guidance_scale": 6.0 if uncond_row >= 0 else 1.0,
        "temperature": 1.0, "top_k": model.num_codes, "top_p": 1.0, "seed": 7 + slot, "position": plan.num_draws,
        "draw_slot": slot,
    }  # fmt: skip
    for name, value in values.items():
        getattr(plan, name).numpy()[plan.num_draws] = value
    plan.num_draws += 1


def fields(shape: Shape) -> dict:
    return dataclasses.asdict(shape)
