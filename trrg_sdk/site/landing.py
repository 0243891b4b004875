"""An object while it arrives: written to the spool piece by piece, never whole in memory, and never too much of it."""

from __future__ import annotations

import os
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trrg_sdk.site.spool import Spool

_CHECK_DISK_EVERY = 16 * 2**20


class FloodError(Exception):
    """A peer sends more, or for longer, than an object may take: the association ends."""


class Landing:
    """One object in the spool's ``incoming``.

    Attributes:
        path: The file, complete and on the disk once :meth:`finish` has returned "".
        offset: Where the data set starts in it; before stand the preamble and the file meta information.
    """

    def __init__(self, spool: Spool, head: bytes, *, max_bytes: int, max_seconds: float) -> None:
        """Begin a file.

        Args:
            spool: Where.
            head: What stands before the data set.
            max_bytes: Of the data set. What comes beyond is dropped, up to as much again.
            max_seconds: From now until the last byte.
        """
        self.offset = len(head)
        self._spool, self._max_bytes, self._deadline = spool, max_bytes, time.monotonic() + max_seconds
        self._size, self._next_check = 0, 0
        self._failure = ""
        handle, name = tempfile.mkstemp(dir=spool.incoming, suffix=".part")
        self.path = Path(name)
        self._file: IO[bytes] = os.fdopen(handle, "wb")
        self._attempt(head)

    def write(self, data: bytes | memoryview) -> None:
        """Append to the data set; after a failure the rest is dropped, so that the peer can be told at its end.

        Raises:
            FloodError: It takes too long, or is larger than anything we would even drop.
        """
        self._size += len(data)
        if time.monotonic() > self._deadline or self._size > 2 * self._max_bytes:
            raise FloodError
        if self._size > self._max_bytes:
            self._fail("larger than the limit")
        elif self._size >= self._next_check:
            self._next_check += _CHECK_DISK_EVERY
            if not self._spool.room():
                self._fail("no room on the disk")
        if not self._failure:
            self._attempt(data)

    def finish(self) -> str:
        """Bring everything to the disk.

        Returns:
            Why there is no complete file; "" when there is one.
        """
        if not self._failure:
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                self._fail(error.strerror or "the disk failed")
        self._close()
        return self._failure

    def discard(self) -> None:
        """Delete the file if it was not taken into a study."""
        self._close()
        self.path.unlink(missing_ok=True)

    def _attempt(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            self._fail(error.strerror or "the disk failed")

    def _fail(self, why: str) -> None:
        """Give the space back at once."""
        self._failure = self._failure or why
        self._close()
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        try:
            self._file.close()
        except OSError as error:  # what was buffered did not fit either
            self._failure = self._failure or error.strerror or "the disk failed"


class Bounded(BytesIO):
    """A part of a message that belongs in memory, and does not get larger than a limit."""

    def __init__(self, max_bytes: int) -> None:
        """Start empty."""
        super().__init__()
        self._left = max_bytes

    def write(self, data: Any, /) -> int:
        """Append.

        Raises:
            FloodError: It gets too large.
        """
        self._left -= memoryview(data).nbytes
        if self._left < 0:
            raise FloodError
        return super().write(data)
