"""JSON to frozen dataclasses and back: exactly their fields, each of its type, finite numbers, no key twice."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trrg_sdk.errors import BundleError

_REMEDY = "Restore the bundle from its source or export it again"


def strict_json(text: str, label: str) -> Any:
    """Read JSON.

    Args:
        text: JSON.
        label: The file's name, for messages.

    Raises:
        BundleError: It is no JSON, gives a key twice, or holds a number that is not finite.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_finite_float, parse_float=_finite_float)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{label}: expected strict JSON, got: {error}. {_REMEDY}.") from error


def from_plain(kind: Any, value: Any, label: str) -> Any:
    """Make a dataclass of what :func:`strict_json` read.

    Args:
        kind: A dataclass of scalars, ``object``, tuples, mappings and dataclasses.
        value: An object with exactly its fields.
        label: The file's name, for messages.

    Raises:
        BundleError: A key is unknown or missing, or a value has the wrong type or range; the message says where.
    """
    try:
        return _parse(kind, value, "")
    except _Wrong as error:
        raise BundleError(f"{label}: {error.where or 'top level'}: {error}. {_REMEDY}.") from error


def plain_text(value: Any) -> str:
    """Write a dataclass as JSON that :func:`strict_json` and :func:`from_plain` read back to an equal one.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(_to_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


class _Wrong(Exception):
    """A value that does not fit, and where it stands."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.where = where


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse a JSON object that gives a key twice (the last one would win silently)."""
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return result


def _finite_float(text: str) -> float:
    """Refuse NaN, Infinity and what overflows to it."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"number {text} is not finite")
    return number


def _parse(kind: Any, value: Any, where: str) -> Any:
    """Convert a JSON value to the annotated type, or raise ``BundleError`` naming the place."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_object(kind, value, where)
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            return tuple(_parse(*pair, f"{where}[{i}]") for i, pair in enumerate(zip(kinds, value, strict=True)))
    elif origin in (Union, types.UnionType) and value is not None and dataclasses.is_dataclass(arguments[0]):
        return _parse(arguments[0], value, where)  # an object, or null
    elif origin is Mapping and isinstance(value, dict):
        return {key: _parse(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    elif _fits(kind, value):
        return float(value) if kind is float else value
    raise _wrong(where, str(getattr(kind, "__name__", kind)) if origin is None else str(kind), repr(value)[:80])


def _fits(kind: Any, value: Any) -> bool:
    """Tell whether a scalar JSON value is of the annotated type; JSON's ``true`` is no number."""
    origin = get_origin(kind)
    if kind is object:
        return True
    if origin is Literal:
        return value in get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(option, value) for option in get_args(kind))
    if isinstance(value, bool) or not isinstance(kind, type):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _parse_object(kind: Any, value: Any, where: str) -> Any:
    """Convert a JSON object to a dataclass: exactly its fields, each of its type."""
    if not isinstance(value, dict):
        raise _wrong(where, "an object", repr(value)[:80])
    hints = _hints(kind)
    if missing := sorted(hints.keys() - value.keys()):
        raise _wrong(where, f"keys {missing}", "none of them")
    if unknown := sorted(value.keys() - hints.keys()):
        raise _wrong(where, f"no other keys than {sorted(hints)}", str(unknown))
    fields = {name: _parse(hint, value[name], f"{where}.{name}".lstrip(".")) for name, hint in hints.items()}
    try:
        return kind(**fields)
    except ValueError as error:
        raise _Wrong(where, str(error)) from error


_hints = functools.cache(get_type_hints)  # resolving annotations takes most of the time of parsing


def _wrong(where: str, expected: str, got: str) -> _Wrong:
    return _Wrong(where, f"expected {expected}, got {got}")


def _to_plain(value: Any) -> Any:
    """Convert dataclasses, mappings and tuples to what ``json`` writes."""
    if dataclasses.is_dataclass(value):
        return {field.name: _to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_to_plain(item) for item in value]
    return value
