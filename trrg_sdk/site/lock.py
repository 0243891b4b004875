"""One process a folder, and a process that ends when it is asked to."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from trrg_sdk.errors import UsageError
from trrg_sdk.site.outbox import stopped

FILE = ".lock"


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder while inside; the system lets go of it however the process ends.

    Raises:
        UsageError: Another process holds it, or it cannot be written.
    """
    try:
        number = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise stopped(error) from error
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(number)
        raise UsageError(
            "--out: another trrg is writing into this folder; wait for it, or choose another one"
        ) from error
    try:
        yield
    finally:
        os.close(number)


class Stop:
    """Set by the first Ctrl-C or SIGTERM; the second one interrupts at once."""

    def __init__(self) -> None:
        """Nobody asked yet."""
        self._asked = threading.Event()

    def __call__(self) -> bool:
        """Say whether somebody asked."""
        return self._asked.is_set()

    def ask(self) -> None:
        """Ask to stop after the study at hand."""
        self._asked.set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until somebody asks; True when somebody did."""
        return self._asked.wait(seconds)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listen to both signals while inside; only in the main thread."""
        before = {number: signal.signal(number, self._signalled) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self():
            raise KeyboardInterrupt
        self.ask()
