"""Every error this package raises on purpose, in one place.

Each class derives from `SimplearError`, so one `except` catches them all, and from the built-in that a caller would
expect (a bad argument is also a `ValueError`). `kind` is a stable short name: the C++ core throws an error with a
kind and the binding looks the class up in `BY_KIND`; servers map kinds to status codes. This file knows nothing
about where an error comes from.
"""


class SimplearError(Exception):
    """Base of all errors raised on purpose."""

    kind = "error"


class InvalidRequestError(SimplearError, ValueError):
    """The caller asked for something that makes no sense (a prompt, a size or a sampling parameter)."""

    kind = "invalid_request"


class CheckpointError(SimplearError, ValueError):
    """A model folder or one of its files is missing, damaged or of an unsupported kind; the text names the file."""

    kind = "checkpoint"


class CapacityError(SimplearError):
    """The request can never fit, however long it waits: its KV blocks exceed the whole cache."""

    kind = "capacity"


class QueueFullError(SimplearError):
    """The bounded queue is full now; the same request may succeed later."""

    kind = "queue_full"


class CancelledError(SimplearError):
    """The request was cancelled before its image was finished."""

    kind = "cancelled"


class NumericalError(SimplearError, ArithmeticError):
    """Weights or logits are not finite, so no image can be sampled."""

    kind = "numerical"


class UnsupportedError(SimplearError, RuntimeError):
    """This machine or this build lacks the device, instruction set or op implementation that was asked for."""

    kind = "unsupported"


class InternalError(SimplearError):
    """A broken promise inside the engine: always a bug of ours."""

    kind = "internal"


def shown(value) -> str:
    """A value that came from somebody, for an error's text: what repr says, cut off, and of whatever has none its type."""
    try:
        return f"{value!r:.80}"
    except Exception:  # an integer of more digits than Python prints, an object with a repr of its own
        return f"a value of type {type(value).__name__} that cannot be shown"


BY_KIND: dict[str, type[SimplearError]] = {
    error.kind: error
    for error in (
        SimplearError,
        InvalidRequestError,
        CheckpointError,
        CapacityError,
        QueueFullError,
        CancelledError,
        NumericalError,
        UnsupportedError,
        InternalError,
    )
}
