"""The rounds of a batch, one after the other, each when something has arrived.

An event of the file system only says "look again": it goes into a queue of one place, and a full queue already says
that. So a flood of files costs no memory, an event that the system dropped is made good by the next look, and while
studies are reported nothing piles up but the files themselves.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trrg_sdk.errors import UsageError
from trrg_sdk.site.batch import Progress, Tally
from trrg_sdk.site.job import Job, Open
from trrg_sdk.site.lock import Stop

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver

AT_ONCE = 32
"""Studies of a round at most: what arrives meanwhile does not wait for a whole backlog."""

_TICK_S = 0.5


class Bell:
    """Rung by every event."""

    def __init__(self) -> None:
        """Rung, so that what is there already is looked at."""
        self._rung = threading.Event()
        self._rung.set()

    def ring(self) -> None:
        """Say that there is something to look at."""
        self._rung.set()

    def wait(self, stop: Stop, seconds: float) -> None:
        """Wait for the next event, ``seconds`` at most, or until somebody asks to stop."""
        waited = 0.0
        while not self._rung.is_set() and waited < seconds and not stop.wait(_TICK_S):
            waited += _TICK_S
        self._rung.clear()


def watch(job: Job, opened: Open, progress: Progress, stop: Stop, *, rescan_s: float) -> Iterator[Tally]:
    """Report on what arrives.

    Args:
        job: Which folder.
        opened: The same, opened.
        progress: Is told.
        stop: Ends it after the study at hand.
        rescan_s: Look this often without any event too: a network drive sends none for what others write.

    Yields:
        The tally of every round that finished a study.

    Raises:
        UsageError: The output folder cannot be written, or the system cannot watch.
        DeviceError: The device failed.
    """
    bell = Bell()
    observer = _observe(job, bell)
    try:
        while not stop():
            bell.wait(stop, rescan_s)
            tally = opened.round(progress, stop)
            if sum(tally.finished.values()):
                yield tally
            if tally.waiting and not tally.behind:
                stop.wait(job.options.settle_s)
            if tally.waiting or tally.behind:
                bell.ring()
    finally:
        observer.stop()
        observer.join()


def _observe(job: Job, bell: Bell) -> BaseObserver:
    """Let the system ring the bell for everything under the folder but our own files."""
    try:
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers import Observer
    except ImportError as error:
        raise UsageError("trrg watch needs watchdog: pip install 'trrg-sdk[site]'") from error
    ours = f"{job.out.resolve()}{os.sep}"

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            reading = event.event_type in ("opened", "closed_no_write")  # our own looks
            if not reading and not os.fsdecode(event.src_path).startswith(ours):
                bell.ring()

    observer = Observer()
    try:
        observer.schedule(Handler(), str(job.tree().folder), recursive=True)
        observer.start()
    except OSError as error:
        raise UsageError(
            f"the system cannot watch this folder ({error.strerror}); raise fs.inotify.max_user_watches, or call "
            "trrg batch now and then"
        ) from error
    return observer
