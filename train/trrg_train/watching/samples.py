"""Sample reports beside their references. They hold report text: they go into the run's folder, never into a log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Sample(NamedTuple):
    """One report. Which study it is of is not kept."""

    source: str
    reference: str
    written: str


def samples_to_markdown(samples: Sequence[Sample]) -> str:
    """Make a table with one row a report, which TensorBoard renders."""
    rows = [f"| {sample.source} | {_cell(sample.reference)} | {_cell(sample.written)} |" for sample in samples]
    return "\n".join(["| source | reference | written |", "|---|---|---|", *rows, ""])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
