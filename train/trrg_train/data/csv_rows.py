"""Rows of a csv file, plain or gzip: every reader's errors name the file and the line."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path

from trrg_sdk.errors import UsageError


def csv_rows(path: Path, *, columns: tuple[str, ...]) -> Iterator[tuple[dict[str, str], str]]:
    """Read one row at a time.

    Args:
        path: csv in UTF-8, with or without a byte order mark (Excel writes one); gzip where its name ends in ``.gz``.
        columns: Those that must be there; others may be.

    Yields:
        Column → value, and where the row stands ("labels.csv, line 7").

    Raises:
        UsageError: The file or a column is missing, a row is too long or too short, or the file is damaged.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            found = tuple(reader.fieldnames or ())
            for name in columns:
                if name not in found:
                    raise UsageError(
                        f"{path}, line 1: the column {name} is missing; found {', '.join(found) or 'none'}"
                    )
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise UsageError(f"{where}: {len(found)} fields are expected; quote the commas, or send it whole")
                yield row, where
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(
            f"no {path.name} in {path.parent}; give a csv with the columns {', '.join(columns)}"
        ) from error
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is damaged or no csv in UTF-8 ({type(error).__name__}); get it again") from error
