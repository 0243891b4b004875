"""How far a round is: a bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from trrg_sdk.site.batch import Progress
from trrg_sdk.site.ledger import State

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

EVERY_S = 10.0


def open_progress(stream: TextIO) -> Progress:
    """Take the bar when ``stream`` is a terminal, else lines; the bar needs the extra ``site``."""
    if not stream.isatty():
        return Lines(stream)
    if importlib.util.find_spec("rich") is None:
        stream.write("for a progress bar: pip install 'trrg-sdk[site]'\n")
        return Lines(stream)
    return RichBar(stream)


class Lines:
    """One line every ten seconds and one at the end."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to ``stream``."""
        self._stream, self._clock = stream, clock
        self._counts: Counter[str] = Counter()
        self._total = 0
        self._started = self._said = clock()

    def start(self, studies: int) -> None:
        """Say how many there are."""
        self._total, self._counts = studies, Counter()
        self._started = self._said = self._clock()
        if studies:
            self._write(f"studies to report: {studies}")

    def advance(self, state: State) -> None:
        """Count one, and say so when it is time to."""
        self._counts[state] += 1
        if self._clock() - self._said >= EVERY_S:
            self._say()

    def stop(self) -> None:
        """Say where it ended."""
        if self._total:
            self._say()

    def _say(self) -> None:
        self._said = self._clock()
        done, seconds = sum(self._counts.values()), self._said - self._started
        rate = done / seconds if seconds > 0 else 0.0
        left = f", {(self._total - done) / rate:.0f} s left" if rate and done < self._total else ""
        self._write(f"{done} of {self._total} ({listed(self._counts)}), {rate:.1f} a second{left}")

    def _write(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


class RichBar:
    """A bar with rate, time left and counts."""

    def __init__(self, stream: TextIO) -> None:
        """Show it on ``stream``, a terminal."""
        self._stream = stream
        self._counts: Counter[str] = Counter()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def start(self, studies: int) -> None:
        """Show the bar; nothing when there is nothing to do."""
        if not studies:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("reporting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[counts]}"),
        )
        self._counts = Counter()
        self._bar = Progress(*columns, console=Console(file=self._stream))
        self._task = self._bar.add_task("", total=studies, counts="", rate="")
        self._bar.start()

    def advance(self, state: State) -> None:
        """Count one."""
        self._counts[state] += 1
        if self._bar is None or self._task is None:
            return
        speed = self._bar.tasks[0].speed
        rate = f"{speed:.1f} a second" if speed else ""
        self._bar.update(self._task, advance=1, counts=listed(self._counts), rate=rate)

    def stop(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def listed(counts: Counter[str]) -> str:
    """Counts in words, such as ``"12 done, 3 refused"``."""
    return ", ".join(f"{number} {word}" for word, number in sorted(counts.items()) if number) or "none"
