"""What was done, so that nothing is done twice and nothing is lost: one SQLite file in the output folder.

It holds hashes, sizes, times, codes and numbers, and no value of a DICOM element: a study is the SHA-256 of its UID, a
file the SHA-256 of its path, an image the SHA-256 of its UID. Whoever knows a UID can find its row; nobody can read a
UID from a row. The sentences of a report are not in it.

A row of ``studies`` is committed after the study's files have their names and are on the disk. A study whose process
dies before that has no row and is done again, with the same files as its result. Each outcome is one row of ``audit``,
committed together with it; ``audit.jsonl`` is what a reader gets of that table, and is completed from it at the start.

What another version of trrg-sdk refused or could not read is tried again: this one may know better. So a ledger knows
which version opened it last, and forgets the refusals of any other; what is done stays done.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from trrg_sdk.errors import UsageError
from trrg_sdk.site.studies import Entry
from trrg_sdk.version import __version__

State = Literal["done", "refused", "failed"]

FILE = "ledger.sqlite"
AUDIT_FILE = "audit.jsonl"

_VERSION = 2
_TAIL = 1 << 16
_SCHEMA = """
CREATE TABLE files (file BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, study BLOB, instance BLOB, code TEXT,
                    place INTEGER) WITHOUT ROWID;
CREATE TABLE studies (study BLOB PRIMARY KEY, content BLOB, quick BLOB, manifest TEXT, formats TEXT, state TEXT,
                      code TEXT, message TEXT, facts TEXT, finished TEXT) WITHOUT ROWID;
CREATE TABLE audit (number INTEGER PRIMARY KEY, line TEXT);
CREATE TABLE pages (audit INTEGER);
"""
_OF_VERSION_2 = "CREATE TABLE runtime (sdk TEXT);"
# A file whose study could not be read stands in both tables under its own key; read again it may belong to another one.
_FORGET_REFUSALS = """
DELETE FROM studies WHERE study IN (SELECT file FROM files WHERE code <> '' AND study = file);
DELETE FROM files WHERE code <> '';
UPDATE studies SET manifest = '' WHERE state <> 'done';
"""
_Statement = tuple[str, list[tuple[Any, ...]]]
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a study. One row each: another bundle, other formats or other images replace it.

    Attributes:
        content: Fingerprint of its images' bytes.
        quick: SHA-256 over their paths' hashes, sizes and times; b"" to look again the next time.
        manifest: SHA-256 of the bundle's manifest.
        formats: What was written.
        state: ``done``, ``refused`` (the gate says no) or ``failed`` (it cannot be read).
        code: Of the first reason; "" when done.
        message: Its sentence.
        facts: Verdict and clue → number, for the summary.
        finished: UTC, ISO 8601.
    """

    content: bytes
    quick: bytes
    manifest: str
    formats: str
    state: State
    code: str
    message: str
    facts: Mapping[str, float]
    finished: str


class Mark(NamedTuple):
    """Of a ``Row``, what decides whether its study is to be reported again; see there."""

    content: bytes
    quick: bytes
    manifest: str
    formats: str
    code: str


class Ledger:
    """One opened ledger. Its methods may be called from several threads."""

    def __init__(self, folder: Path) -> None:
        """Open the ledger of an output folder, or make it; the caller holds the folder's lock.

        Raises:
            UsageError: It cannot be written, or it is of another version.
        """
        self._lock = threading.RLock()
        self._audit_path = folder / AUDIT_FILE
        self._database = self._try(lambda: _open(folder / FILE))
        self._complete_audit()

    def close(self) -> None:
        """Close it; the write-ahead log is folded in."""
        self._database.close()

    def entries(self) -> dict[bytes, Entry]:
        """Read what is remembered of files, by their keys."""
        return self._try(lambda: _entries(self._database))

    def rows(self) -> dict[bytes, Row]:
        """Read what became of each study, by its key; in the order in which they were finished."""
        return self._try(lambda: _rows(self._database))

    def marks(self) -> dict[bytes, Mark]:
        """Read what decides whether a study is to be reported: the same in a fraction of the time."""
        return self._try(lambda: _marks(self._database))

    def states(self) -> dict[bytes, str]:
        """Read the state of each study, by its key."""
        return self._try(lambda: dict(self._database.execute("SELECT study, state FROM studies")))

    def remember(self, entries: Mapping[bytes, Entry], *, gone: Iterable[bytes] = ()) -> None:
        """Keep what the headers of some files said, and forget files that are gone; what was reported is kept."""
        rows = [(key, *entry) for key, entry in entries.items()]
        insert = ("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self._commit([insert, ("DELETE FROM files WHERE file = ?", [(key,) for key in gone])])

    def unchanged(self, study: bytes, quick: bytes) -> None:
        """Note that the images of a study were touched and are the same."""
        self._commit([("UPDATE studies SET quick = ? WHERE study = ?", [(quick, study)])])

    def finish(self, studies: Mapping[bytes, tuple[Row, Mapping[str, Any]]]) -> None:
        """Say what became of studies, of all or of none; their files are on the disk.

        Args:
            studies: Key → the outcome and the line of the audit log.
        """
        rows, lines = [], []
        for study, (row, audit) in studies.items():
            values = (row.content, row.quick, row.manifest, row.formats, row.state, row.code, row.message)
            rows.append((study, *values, json.dumps(dict(row.facts)), row.finished))
            lines.append((json.dumps(dict(audit)),))
        statements: list[_Statement] = [
            ("INSERT OR REPLACE INTO studies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows),
            ("INSERT INTO audit (line) VALUES (?)", lines),
        ]
        with self._lock:
            self._commit(statements)
            self._complete_audit()

    def pages_are_current(self) -> bool:
        """Say whether the pages were written after the last outcome."""
        query = "SELECT (SELECT max(number) FROM audit) IS (SELECT max(audit) FROM pages)"
        return bool(self._try(lambda: self._database.execute(query).fetchone())[0])

    def pages_written(self) -> None:
        """Note that the pages show every outcome."""
        self._commit([("INSERT INTO pages SELECT max(number) FROM audit WHERE ?", [(1,)])])

    def _commit(self, statements: Iterable[_Statement]) -> None:
        def work() -> None:
            with self._lock, self._database:
                self._database.execute("BEGIN IMMEDIATE")
                for statement, rows in statements:
                    self._database.executemany(statement, rows)

        self._try(work)

    def _complete_audit(self) -> None:
        """Append to the log what the table has and the log has not; a line that was cut off goes first."""

        def work() -> None:
            with open(self._audit_path, "ab+", opener=_private) as stream:
                last = _last_number(stream)
                query = "SELECT number, line FROM audit WHERE number > ? ORDER BY number"
                for number, line in self._database.execute(query, (last,)):
                    stream.write(json.dumps({"number": number, **json.loads(line)}).encode() + b"\n")

        self._try(work)

    @staticmethod
    def _try(work: Callable[[], _Result]) -> _Result:
        try:
            return work()
        except (sqlite3.Error, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise UsageError(
                f"--out: the ledger in this folder cannot be used ({why}). Make room or choose another folder, and run "
                "again: it goes on where it stopped"
            ) from error


def peek(folder: Path) -> tuple[dict[bytes, Entry], dict[bytes, Mark]]:
    """Read a ledger without changing anything: what is remembered of files and of studies, empty where there is none.

    Raises:
        UsageError: It cannot be read.
    """
    if not (folder / FILE).exists():
        return {}, {}

    def work() -> tuple[dict[bytes, Entry], dict[bytes, Mark]]:
        with (
            closing(sqlite3.connect(f"{(folder / FILE).resolve().as_uri()}?mode=ro", uri=True)) as file,
            closing(sqlite3.connect(":memory:", isolation_level=None)) as database,
        ):
            file.backup(database)
            _bring_up_to_date(database)
            return _entries(database), _marks(database)

    return Ledger._try(work)


def _entries(database: sqlite3.Connection) -> dict[bytes, Entry]:
    return {row[0]: Entry(*row[1:]) for row in database.execute("SELECT * FROM files")}


def _marks(database: sqlite3.Connection) -> dict[bytes, Mark]:
    rows = database.execute("SELECT study, content, quick, manifest, formats, code FROM studies")
    return {row[0]: Mark(*row[1:]) for row in rows}


def _rows(database: sqlite3.Connection) -> dict[bytes, Row]:
    found = {}
    for study, *values, facts, finished in database.execute("SELECT * FROM studies ORDER BY finished"):
        content, quick, manifest, formats, state, code, message = values
        found[study] = Row(content, quick, manifest, formats, state, code, message, json.loads(facts), finished)
    return found


def _open(path: Path) -> sqlite3.Connection:
    os.close(_private(str(path), os.O_RDWR | os.O_CREAT))  # SQLite would make it readable for everybody
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    _bring_up_to_date(database)
    return database


def _bring_up_to_date(database: sqlite3.Connection) -> None:
    """Make the tables that are missing, and forget what another version of trrg-sdk refused; all of it or nothing."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version not in range(_VERSION + 1):
        raise sqlite3.DatabaseError(f"it is of version {version}, this trrg-sdk writes {_VERSION}")
    statements = "" if version else _SCHEMA
    if version < _VERSION:
        statements += f"{_OF_VERSION_2} PRAGMA user_version = {_VERSION};"
    last = None if statements else database.execute("SELECT sdk FROM runtime").fetchone()
    if last != (__version__,):
        runtime = f"DELETE FROM runtime; INSERT INTO runtime VALUES ('{__version__}');"
        database.executescript(f"BEGIN; {statements} {_FORGET_REFUSALS} {runtime} COMMIT;")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _last_number(stream: Any) -> int:
    """Number of the last whole line; what stands behind it is cut off."""
    size = stream.seek(0, os.SEEK_END)
    start = max(0, size - _TAIL)
    stream.seek(start)
    tail = stream.read()
    whole = tail[: tail.rfind(b"\n") + 1]
    if len(whole) != len(tail):
        stream.truncate(start + len(whole))
        stream.seek(0, os.SEEK_END)
    lines = whole.splitlines()
    return int(json.loads(lines[-1])["number"]) if lines else 0
