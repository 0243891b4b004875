"""What a report can be written as: one module a format, all with the same three names.

``NAME`` is what ``--format`` calls it, ``EXTENSION`` ends its file names, ``render(report) -> bytes`` writes it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from trrg_sdk.errors import UsageError
from trrg_sdk.report import Report

FORMATS = ("text", "json")


class Output(Protocol):
    """A module of this package.

    Attributes:
        NAME: The format's name.
        EXTENSION: Of its files, with the dot.
    """

    NAME: str
    EXTENSION: str

    def render(self, report: Report) -> bytes:
        """Write the report."""
        ...


def open_output(name: str) -> Output:
    """Import a format's module only when it is asked for.

    Args:
        name: One of ``FORMATS``.

    Raises:
        UsageError: There is no such format.
    """
    if name not in FORMATS:
        raise UsageError(f"no output format {name!r}; there are {', '.join(FORMATS)}")
    return cast(Output, import_module(f"trrg_sdk.outputs.{name}"))
