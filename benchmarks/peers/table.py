"""From the numbers of all rounds to the table: ratios, text, and its place in a page. Pure, knows no processes.

A round's number is the time of all its steps divided by their count. A peer's number is the median over the rounds. A
ratio is the median over the rounds of the quotient within a round: what the machine does from minute to minute falls
on both sides of it.
"""

import math
import statistics
from dataclasses import dataclass, field

WEIGHT_TYPES = ("bf16", "int8", "int4")
OURS, FLOOR = "simplear", "floor"
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"


@dataclass
class Row:
    """One peer with one weight type. `rounds` are ms a step, NaN for a round that failed; `reason`: why it has none."""

    peer: str
    title: str
    weights: str
    stored: str
    version: str = ""
    rounds: list[float] = field(default_factory=list)
    # How many leading tokens equal those of float32, one number a sequence, and out of how many.
    agreement: list[int] | None = None
    agreement_of: int = 0
    reason: str | None = None

    @property
    def median(self) -> float:
        done = [value for value in self.rounds if math.isfinite(value)]
        return statistics.median(done) if done else math.nan


def round_ms(milliseconds: list[float]) -> float:
    return sum(milliseconds) / len(milliseconds)


def ratio(row: Row, other: Row | None) -> float:
    """How many times longer `row` takes than `other`, over the rounds that both finished; NaN where there is none."""
    if other is None:
        return math.nan
    quotients = [a / b for a, b in zip(row.rounds, other.rounds, strict=False) if math.isfinite(a) and math.isfinite(b)]
    return statistics.median(quotients) if quotients else math.nan


def agreement(tokens: list[list[int]] | None, reference: list[list[int]]) -> list[int] | None:
    """How many leading tokens of each sequence are those of the reference; None where there are no tokens."""
    if not tokens:
        return None
    counts = []
    for row, expected in zip(tokens, reference, strict=True):
        equal = [a == b for a, b in zip(row, expected, strict=False)]
        counts.append(equal.index(False) if False in equal else len(equal))
    return counts


def find(rows: list[Row], peer: str, weights: str) -> Row | None:
    return next((row for row in rows if (row.peer, row.weights) == (peer, weights)), None)


def to_json(rows: list[Row]) -> list[dict]:
    return [
        {
            "peer": row.peer,
            "version": row.version,
            "weights": row.weights,
            "stored": row.stored,
            "ms_per_step": _number(row.median),
            "ms_rounds": [_number(value) for value in row.rounds],
            "ratio_to_ours": _number(ratio(row, find(rows, OURS, row.weights))),
            "ratio_to_floor": _number(ratio(row, find(rows, FLOOR, row.weights))),
            "tokens_as_float32": row.agreement,
            "reason": row.reason,
        }
        for row in rows
    ]


def to_markdown(rows: list[Row]) -> str:
    """A table for each weight type, fastest first, and a list of what did not run."""
    parts = []
    for weights in WEIGHT_TYPES:
        group = [row for row in rows if row.weights == weights]
        timed = sorted((row for row in group if math.isfinite(row.median)), key=lambda row: row.median)
        if timed:
            parts.append(f"### {weights}\n\n" + _table(rows, timed))
        failed = [row for row in group if row.reason]
        if failed:
            parts.append("\n".join(f"- {row.title}, {weights}: {row.reason}" for row in failed))
    return "\n\n".join(parts) + "\n"


def _table(rows: list[Row], timed: list[Row]) -> str:
    lines = [
        "| engine | version | weights as stored | ms a step | rounds | to ours | to the floor | tokens as float32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in timed:
        done = [value for value in row.rounds if math.isfinite(value)]
        ours, floor = (ratio(row, find(rows, peer, row.weights)) for peer in (OURS, FLOOR))
        bold = "**" if row.peer == OURS else ""
        cells = [
            f"{bold}{row.title}{bold}", row.version, row.stored, f"{bold}{row.median:.1f}{bold}",
            f"{min(done):.1f}..{max(done):.1f}", _times(ours), _times(floor), _agreement(row),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _agreement(row: Row) -> str:
    if row.agreement is None:
        return ""
    return ", ".join(map(str, row.agreement)) + f" of {row.agreement_of}"


def _times(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else ""


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def insert(page: str, text: str) -> str:
    """`page` with `text` in place of what stands between the two marker lines. ValueError without both."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN} and {END} in the page")
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}"
