"""Typed errors: found by kind, caught as what a caller expects."""

import pytest

from simplear_engine import errors

CLASSES = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, errors.SimplearError)]


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_found_by_its_kind(error):
    assert errors.BY_KIND[error.kind] is error


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InvalidRequestError, ValueError),
        (errors.CheckpointError, ValueError),
        (errors.NumericalError, ArithmeticError),
        (errors.UnsupportedError, RuntimeError),
    ],
)
def test_error_is_also_the_builtin_that_callers_expect(error, builtin):
    with pytest.raises(builtin):
        raise error("text")
