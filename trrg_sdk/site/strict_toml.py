"""TOML to frozen dataclasses: exactly their keys, each of its type and in its range, every problem named at once."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from trrg_sdk.errors import UsageError

T = TypeVar("T")

_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path (a text)"}


@dataclass(frozen=True)
class Between:
    """Both ends belong to the range."""

    low: float
    high: float

    def problem(self, value: Any) -> str:
        """What is wrong with the value; "" when nothing is."""
        return "" if self.low <= value <= self.high else f"expected {self.low} to {self.high}, got {value}"


@dataclass(frozen=True)
class Matches:
    """A text that fits a pattern as a whole."""

    pattern: str
    what: str

    def problem(self, value: Any) -> str:
        """What is wrong with the value; "" when nothing is."""
        return "" if re.fullmatch(self.pattern, value) else f"expected {self.what}, got {value!r}"


@dataclass(frozen=True)
class OneOf:
    """A text of a list."""

    choices: tuple[str, ...]

    def problem(self, value: Any) -> str:
        """What is wrong with the value; "" when nothing is."""
        return "" if value in self.choices else f"expected one of {', '.join(self.choices)}, got {value!r}"


def read_toml(kind: type[T], path: Path) -> T:
    """Read and check a TOML.

    Args:
        kind: A frozen dataclass of texts, numbers, booleans, paths, tuples of one type, and such dataclasses. A type
            may be ``Annotated`` with :class:`Between`, :class:`Matches` or :class:`OneOf`. A field without a default
            must be there; one that is ``X | None`` may be left out.
        path: The file. Relative paths in it start at its folder.

    Raises:
        UsageError: It cannot be read, is no TOML, or has problems: all of them are listed.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is no valid TOML: {error}") from error
    return from_table(kind, values, base=path.absolute().parent, label=str(path))


def from_table(kind: type[T], values: object, *, base: Path, label: str) -> T:
    """Check what ``tomllib`` read, or what stands for it.

    Args:
        kind: As for :func:`read_toml`.
        values: A table.
        base: Where relative paths start.
        label: What the message calls it.

    Raises:
        UsageError: It has problems: all of them are listed.
    """
    reader = _Reader(base)
    made = reader.table(kind, values, "")
    if reader.problems:
        listed = "\n  ".join(reader.problems)
        raise UsageError(f"{label} has {len(reader.problems)} problem(s); correct them all:\n  {listed}")
    return made  # type: ignore[no-any-return]  # a table without problems is of its kind


class _Reader:
    """Converts and collects problems; what it returns is only of use when there were none."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.problems: list[str] = []

    def table(self, kind: Any, values: Any, where: str) -> Any:
        if not isinstance(values, dict):
            return self._problem(where.rstrip("."), f"expected a table, got {values!r:.60}")
        hints, before = get_type_hints(kind, include_extras=True), len(self.problems)
        for key in sorted(values.keys() - hints.keys()):
            near = difflib.get_close_matches(key, hints, n=1)
            known = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(hints))}"
            self._problem(f"{where}{key}", f"unknown key; {known}")
        found = {}
        for each in dataclasses.fields(kind):
            if each.name in values:
                found[each.name] = self.value(hints[each.name], values[each.name], f"{where}{each.name}")
            elif each.default is MISSING and each.default_factory is MISSING:
                self._problem(f"{where}{each.name}", "missing")
        if len(self.problems) > before:
            return None
        try:
            return kind(**found)
        except ValueError as error:  # a check of several keys together
            return self._problem(where.rstrip("."), str(error))

    def value(self, kind: Any, value: Any, where: str) -> Any:
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):  # X | None: TOML has no null, so it is X
            return self.value(arguments[0], value, where)
        if origin is Annotated:
            plain, *checks = arguments
            before = len(self.problems)
            made = self.value(plain, value, where)
            wrong = [text for check in checks if (text := check.problem(made))] if len(self.problems) == before else []
            return self._problem(where, wrong[0]) if wrong else made
        if dataclasses.is_dataclass(kind):
            return self.table(kind, value, f"{where}.")
        if origin is tuple:
            if not isinstance(value, list):
                return self._problem(where, f"expected a list, got {value!r:.60}")
            return tuple(self.value(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value))
        return self._scalar(kind, value, where)

    def _scalar(self, kind: Any, value: Any, where: str) -> Any:
        plain = str if kind is Path else kind
        whole_for_float = plain is float and type(value) is int
        if not (type(value) is plain or whole_for_float) or (plain is float and not math.isfinite(value)):
            return self._problem(where, f"expected {_NAMES[kind]}, got {value!r:.60}")
        if kind is Path:
            return self._base / value if value else self._problem(where, "expected a path, got an empty text")
        return float(value) if whole_for_float else value

    def _problem(self, where: str, text: str) -> None:
        self.problems.append(f"{where or 'the file'}: {text}")
