"""What waits to be sent to DICOM nodes, in SQLite: nothing is forgotten over a restart, nothing refused is sent again.

An object belongs to a destination once, by its SOP Instance UID: queueing it again changes nothing, unless its content
is another or it has failed. SOP Instance UIDs are kept as hashes.

    waiting ──► stored                     the node has it, and was asked for nothing more
       │  ▲       └► requested ──► committed      the node vouches for keeping it (PS3.4 J)
       │  └─ later ◄─────┘  └────► uncommitted    it never said so
       └────► failed                       refused for good, or not delivered for too long
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trrg_sdk.errors import DicomError, UsageError
from trrg_sdk.site.config import QueueConfig
from trrg_sdk.site.spool import hashed

_LOG = logging.getLogger(__name__)

State = Literal["waiting", "stored", "requested", "committed", "uncommitted", "failed"]
_SCHEMA = """
CREATE TABLE IF NOT EXISTS item (
    id INTEGER PRIMARY KEY,
    destination TEXT NOT NULL,
    instance TEXT NOT NULL,
    path TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    asked INTEGER NOT NULL DEFAULT 0,
    queued_at REAL NOT NULL,
    next_at REAL NOT NULL,
    note TEXT NOT NULL DEFAULT '',
    transaction_uid TEXT NOT NULL DEFAULT '',
    UNIQUE (destination, instance)
);
CREATE INDEX IF NOT EXISTS item_due ON item (state, next_at);
"""
_COLUMNS = "id, destination, instance, path, state, attempts, asked, queued_at, note"
_MAX_ASKED = 2
_RESEND = {0x0110, 0x0112, 0x0213}  # PS3.4 J.3.3.1.1: processing failure, no such object instance, resource limitation


@dataclass(frozen=True)
class Item:
    """An object on its way to one node.

    Attributes:
        id: In the queue.
        destination: Name of the node.
        instance: Hash of its SOP Instance UID.
        path: The DICOM file.
        state: See the module.
        attempts: Deliveries that did not succeed.
        asked: Requests for storage commitment.
        queued_at: Seconds since the epoch.
        note: Why it is not further.
    """

    id: int
    destination: str
    instance: str
    path: Path = field(repr=False)
    state: State
    attempts: int
    asked: int
    queued_at: float
    note: str


class SendQueue:
    """The queue in one file; any number of threads and processes may use it."""

    def __init__(self, path: Path, config: QueueConfig, *, clock: Callable[[], float] = time.time) -> None:
        """Open or make it.

        Raises:
            UsageError: The file cannot be used.
        """
        self.path, self._config, self._clock = path, config, clock
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
        except OSError as error:
            raise UsageError(f"cannot use the queue {path}: {error.strerror}; name a file to write in") from error
        with self._database() as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.executescript(_SCHEMA)

    def enqueue(self, path: Path, destination: str) -> bool:
        """Have a DICOM file sent; idempotent, so call it again when in doubt.

        Args:
            path: The file; it must stay until it was delivered.
            destination: Name of a node.

        Returns:
            False when the same content is on its way or was delivered already.

        Raises:
            DicomError: It is no DICOM file (code ``not_dicom``).
            UsageError: The queue cannot be written.
        """
        instance, digest, now = hashed(sop_uids(path)[1]), hashlib.sha256(path.read_bytes()).hexdigest(), self._clock()
        with self._database() as database:
            cursor = database.execute(
                "INSERT INTO item (destination, instance, path, sha256, state, queued_at, next_at)"
                " VALUES (?, ?, ?, ?, 'waiting', ?, ?) ON CONFLICT (destination, instance) DO UPDATE SET"
                " path = excluded.path, sha256 = excluded.sha256, state = 'waiting', attempts = 0, asked = 0,"
                " queued_at = excluded.queued_at, next_at = excluded.next_at, note = '', transaction_uid = ''"
                " WHERE item.sha256 <> excluded.sha256 OR item.state = 'failed'",
                (destination, instance, str(path.absolute()), digest, now, now),
            )
            return cursor.rowcount > 0

    def due(self) -> list[Item]:
        """What is to be sent now, the oldest first."""
        return self._select("state = 'waiting' AND next_at <= ? ORDER BY queued_at, id LIMIT 500", self._clock())

    def overdue(self) -> list[Item]:
        """What a node was asked to commit to, and has not answered in time."""
        return self._select("state = 'requested' AND next_at <= ? ORDER BY queued_at, id LIMIT 500", self._clock())

    def items(self) -> list[Item]:
        """Everything, the oldest first."""
        return self._select("1 ORDER BY queued_at, id")

    def counts(self) -> dict[str, int]:
        """State → how many."""
        with self._database() as database:
            return dict(database.execute("SELECT state, count(*) FROM item GROUP BY state").fetchall())

    def stored(self, item: Item, note: str = "") -> None:
        """The node has it, and is asked for nothing more."""
        self._update(item, "stored", note)

    def to_be_asked(self, item: Item) -> None:
        """The node has it, and will be asked to commit to keeping it; by the next process if this one is killed."""
        with self._database() as database:
            deadline = self._clock() + self._config.commitment_timeout_s
            database.execute("UPDATE item SET state = 'requested', next_at = ? WHERE id = ?", (deadline, item.id))

    def failed(self, item: Item, reason: str) -> None:
        """It will not be sent again unless somebody asks for that."""
        _LOG.error("object %s to %s has failed: %s", item.instance, item.destination, reason)
        self._update(item, "failed", reason)

    def later(self, item: Item, reason: str) -> None:
        """It could not be delivered now: after a pause that doubles each time, or never when that lasts too long."""
        now, config = self._clock(), self._config
        if now - item.queued_at > config.give_up_hours * 3600:
            self.failed(item, f"gave up after {item.attempts + 1} attempts: {reason}")
            return
        pause = min(config.retry_longest_s, config.retry_first_s * 2.0 ** min(item.attempts, 40))
        _LOG.warning("object %s to %s: %s; again in %.0f s", item.instance, item.destination, reason, pause)
        with self._database() as database:
            database.execute(
                "UPDATE item SET state = 'waiting', attempts = attempts + 1, next_at = ?, note = ? WHERE id = ?",
                (now + pause, reason, item.id),
            )

    def requested(self, items: Sequence[Item], transaction_uid: str | None) -> None:
        """The node is about to be asked for storage commitment; call it before, since the answer may come at once.

        Args:
            items: What for.
            transaction_uid: Of the request; None when it could not be made, so that a former one still counts.
        """
        deadline = self._clock() + self._config.commitment_timeout_s
        with self._database() as database:
            database.executemany(
                "UPDATE item SET state = 'requested', asked = asked + 1, next_at = ?,"
                " transaction_uid = coalesce(?, transaction_uid), note = '' WHERE id = ?",
                [(deadline, transaction_uid, item.id) for item in items],
            )

    def unanswered(self, item: Item, reason: str) -> bool:
        """No commitment came, or none can be asked for.

        Returns:
            True when the node should be asked once more.
        """
        if item.asked < _MAX_ASKED:
            return True
        _LOG.error("object %s: %s has it and did not commit to keeping it: %s", item.instance, item.destination, reason)
        self._update(item, "uncommitted", reason)
        return False

    def answered(self, transaction_uid: str, kept: Sequence[str], lost: Mapping[str, int]) -> None:
        """A node's answer to a request for storage commitment.

        Args:
            transaction_uid: Of the request.
            kept: SOP Instance UIDs that it vouches for.
            lost: SOP Instance UID → failure reason of the others.
        """
        asked = self._select("transaction_uid = ? AND state = 'requested'", transaction_uid)
        if not asked:
            _LOG.warning("a storage commitment came that nobody waits for")
        vouched, refused = {hashed(uid) for uid in kept}, {hashed(uid): why for uid, why in lost.items()}
        for item in asked:
            why = refused.get(item.instance)
            if why is not None and why in _RESEND:
                self.later(item, f"the node did not commit to keeping it (reason {why:04X}) and gets it again")
            elif why is not None:
                self._update(item, "uncommitted", f"the node refused to commit to keeping it (reason {why:04X})")
            elif item.instance in vouched:
                _LOG.info("object %s: %s commits to keeping it", item.instance, item.destination)
                self._update(item, "committed", "")

    def retry_failed(self) -> int:
        """Have everything that has failed sent again; says how many."""
        with self._database() as database:
            now = self._clock()
            return database.execute(
                "UPDATE item SET state = 'waiting', attempts = 0, asked = 0, queued_at = ?, next_at = ?"
                " WHERE state = 'failed'",
                (now, now),
            ).rowcount

    def _update(self, item: Item, state: State, note: str) -> None:
        with self._database() as database:
            database.execute("UPDATE item SET state = ?, note = ? WHERE id = ?", (state, note, item.id))

    def _select(self, where: str, *values: object) -> list[Item]:
        with self._database() as database:
            rows = database.execute(f"SELECT {_COLUMNS} FROM item WHERE {where}", values).fetchall()
        return [Item(row[0], row[1], row[2], Path(row[3]), *row[4:]) for row in rows]

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk when it is left."""
        try:
            connection = sqlite3.connect(self.path, timeout=30)
            try:
                connection.execute("PRAGMA synchronous = FULL")
                with connection:
                    yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise UsageError(f"cannot use the queue {self.path}: {error}; name a file that can be written") from error


def sop_uids(path: Path) -> tuple[str, str, str]:
    """SOP Class UID, SOP Instance UID and Transfer Syntax UID, from the file meta information.

    Raises:
        DicomError: It cannot be read, or is no DICOM file (code ``not_dicom``).
    """
    from pydicom.filereader import read_file_meta_info

    from trrg_sdk import dicom_tags as tags

    try:
        with tags.quiet():
            meta = read_file_meta_info(path)
            found = [tags.uid(meta, f"{name}UID") for name in ("MediaStorageSOPClass", "MediaStorageSOPInstance")]
            found.append(tags.uid(meta, "TransferSyntaxUID"))
    except Exception as error:
        raise DicomError("what is to be sent cannot be read as a DICOM file", code="not_dicom") from error
    if not all(found):
        raise DicomError("what is to be sent has no complete file meta information", code="not_dicom")
    return found[0], found[1], found[2]
