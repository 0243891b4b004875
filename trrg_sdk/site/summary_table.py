"""``summary.csv``: one line a study, for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from trrg_sdk.site.ledger import Row

FILE = "summary.csv"


def render(rows: Mapping[str, Row]) -> bytes:
    """UTF-8 with a header line.

    Args:
        rows: Study's name → what became of it.
    """
    facts = list(dict.fromkeys(key for row in rows.values() for key in row.facts))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["study", "outcome", "reason", "message", "finished", "formats", "manifest_sha256", *facts])
    for name, row in rows.items():
        fixed = (name, row.state, row.code, row.message, row.finished, row.formats, row.manifest)
        writer.writerow([*fixed, *(_number(row.facts.get(key)) for key in facts)])
    return stream.getvalue().encode()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
