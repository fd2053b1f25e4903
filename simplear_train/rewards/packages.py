"""Packages that single rewards need and nothing else does: imported late, and missed with advice."""

import importlib
from types import ModuleType

from simplear_engine.errors import UnsupportedError


def need(module: str, reward: str, package: str | None = None) -> ModuleType:
    """The module, or an error that says which reward wants what installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module
        raise UnsupportedError(f"reward {reward!r} needs the package {name}: pip install {name} ({error})") from error
