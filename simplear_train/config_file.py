"""TOML files into frozen dataclasses, strictly, and back with every value spelled out.

A dataclass is its own schema: field names are keys, nested dataclasses are tables, tuples of dataclasses are arrays of
tables. A key that no field has, a value of another type or a required key that is absent is an error that names the
key. Nothing here knows what a config is for.
"""

import dataclasses
import difflib
import json
import math
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simplear_engine.errors import InvalidRequestError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIGS = Path(__file__).parent / "configs"


def config_path(name_or_path: str) -> Path:
    """The file itself, or the one of that name that comes with the package."""
    for path in (Path(name_or_path), CONFIGS / f"{name_or_path}.toml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.toml")))
    raise InvalidRequestError(f"--config: no file {name_or_path!r}; configs that come with the package: {known}")


def read_config(schema: type, path: Path, settings: tuple[str, ...] = ()):
    """The config at `path`, with "table.key=value" settings (values as in TOML, or bare words) on top."""
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path}: not TOML: {error}") from None
    for setting in settings:
        _apply(values, setting)
    return from_dict(schema, values, str(path))


def from_dict(schema: type, values: dict, source: str, prefix: str = ""):
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, 1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else f"; known are {', '.join(fields)}"
            raise InvalidRequestError(f"{source}: unknown key {prefix}{key}{hint}")
    hints = typing.get_type_hints(schema)
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], source, prefix + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InvalidRequestError(f"{source}: {prefix}{name}: expected {_describe(hints[name])}, found nothing")
    return schema(**arguments)


def check_values(config, table: str, **rules: tuple[str, Callable[[Any], bool]]) -> None:
    """For __post_init__: InvalidRequestError where a field is set to what its rule, words and a test, refuses."""
    for name, (expected, is_right) in rules.items():
        value = getattr(config, name)
        if value is not None and not is_right(value):
            raise InvalidRequestError(f"{table}{'.' * bool(table)}{name}: expected {expected}, got {value}")


# None of these lets NaN through, which no comparison holds for.
POSITIVE = "more than 0", lambda value: 0 < value < math.inf
NOT_NEGATIVE = "at least 0", lambda value: 0 <= value < math.inf
COUNT = "at least 1", lambda value: value >= 1
SHARE = "a share from 0 to 1", lambda value: 0 <= value <= 1
BELOW_ONE = "at least 0 and less than 1", lambda value: 0 <= value < 1


def to_toml(config, prefix: str = "") -> str:
    """The whole config, every value visible; None is written as a comment, because TOML has no word for it."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    lines, tables = [], []
    for name, value in values.items():
        if dataclasses.is_dataclass(value):
            tables.append(f"\n[{prefix}{name}]\n{to_toml(value, f'{prefix}{name}.')}")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            tables += [f"\n[[{prefix}{name}]]\n{to_toml(item, f'{prefix}{name}.')}" for item in value]
        elif value is None:
            lines.append(f"# {name} is not set")
        else:
            lines.append(f"{name} = {_literal(value)}")
    return "\n".join(lines) + "\n" + "".join(tables)


def _literal(value) -> str:
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_text(k)} = {_literal(v)}" for k, v in value.items()) + " }"
    if isinstance(value, float) and abs(value) < 1e15 and value == int(value):
        return f"{value:.1f}"
    return repr(value) if isinstance(value, float) else _text(value)


def _text(value) -> str:
    """As JSON has it, and DEL as a number, which TOML alone asks for."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _convert(kind, value, source: str, key: str):
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert(next(a for a in arguments if a is not type(None)), value, source, key)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return from_dict(kind, value, source, f"{key}.")
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(arguments[0], item, source, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return value
    if origin is typing.Literal and value in arguments:
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise InvalidRequestError(f"{source}: {key}: expected {_describe(kind)}, found {value!r:.80}")


def _describe(kind) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(json.dumps(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return _describe(next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        return f"an array of {_describe(arguments[0])}"
    if dataclasses.is_dataclass(kind) or origin is dict:
        return "a table"
    return {int: "an integer", float: "a number", str: "a string", bool: "true or false"}[kind]


def _apply(values: dict, setting: str) -> None:
    path, equals, text = setting.partition("=")
    if not equals:
        raise InvalidRequestError(f"--set: expected table.key=value, got {setting!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, key = path.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise InvalidRequestError(f"--set: {setting!r}: {table} is not a table")
    values[key] = value
