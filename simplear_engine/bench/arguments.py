"""Command-line values that argparse does not know: lists, checked, with an error that says what was expected."""

from collections.abc import Sequence

from simplear_engine.errors import InvalidRequestError


def integers(name: str, text: str, low: int, high: int, one: bool = False) -> list[int]:
    """Different integers in low..high, comma-separated, in the order given."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(low <= value <= high for value in values) or (one and len(values) > 1):
        kind = "an integer" if one else "integers, comma-separated,"
        raise InvalidRequestError(f"{name}: expected {kind} in {low}..{high}, got {text!r}")
    return list(dict.fromkeys(values))


def one_of_each(name: str, text: str, known: Sequence[str]) -> list[str]:
    """Different names out of `known`, comma-separated."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [part for part in names if part not in known]:
        raise InvalidRequestError(f"{name}: expected some of {', '.join(known)}, got {unknown[0]!r}")
    return names


def positive_number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < float("inf"):
        raise InvalidRequestError(f"{name}: expected a number above 0, got {text!r}")
    return value
