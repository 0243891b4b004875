"""An engine in a process of its own: its memory is its own, and a crash is a line on the page.

The processes live as long as the run and take turns; one that waits sleeps. This module and the one that is run
import little, because every process imports both.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PATIENCE = 600.0  # seconds for one answer of an engine; one that takes longer hangs


class EngineFailed(Exception):
    """Why an engine gives no figures, in one line."""


def one_line(error: BaseException) -> str:
    """What a page says about a failure."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


@dataclass(frozen=True)
class Timed:
    """One call.

    Attributes:
        seconds: Wall clock.
        cpu: Of all threads.
        result: What it returned.
    """

    seconds: float
    cpu: float
    result: Any


class EngineProcess:
    """The parent's end."""

    def __init__(self, make: Callable[[], object], *, threads: int, patience: float = PATIENCE) -> None:
        """Open an engine.

        Args:
            make: Opens it, in the process.
            threads: For libraries that read the environment.
            patience: Seconds for one answer.

        Raises:
            EngineFailed: It does not open here.
        """
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._patience = patience
        context = multiprocessing.get_context("spawn")
        self._mine, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def call(self, name: str, *values: Any) -> Timed:
        """Call a method of the engine, or ``peak`` for its memory so far in bytes."""
        try:
            self._mine.send((name, values))
        except OSError as error:
            raise EngineFailed(one_line(error)) from error
        answer: Timed = self._answer()
        return answer

    def close(self) -> None:
        """End the process."""
        self._mine.close()
        self._process.join(10)
        self._process.kill()

    def _answer(self) -> Any:
        if not self._mine.poll(self._patience):
            self._process.kill()
            raise EngineFailed(f"no answer in {self._patience:.0f} s")
        try:
            answer = self._mine.recv()
        except EOFError:
            self._process.join(10)
            raise EngineFailed(f"its process ended with code {self._process.exitcode}") from None
        if isinstance(answer, str):
            raise EngineFailed(answer)
        return answer


def _serve(connection: Connection, make: Callable[[], object]) -> None:
    """The child's end: answers calls until the parent is gone; a string is a failure."""
    try:
        engine = make()
        connection.send(None)
        while True:
            name, values = connection.recv()
            if name == "peak":
                connection.send(Timed(0, 0, _peak()))
            else:
                connection.send(_timed(getattr(engine, name), values))
    except EOFError:
        return
    except Exception as error:  # an engine's own; the page says it
        with suppress(OSError):  # nobody listens any more
            connection.send(one_line(error))


def _peak() -> int:
    """Most resident bytes so far; ``getrusage`` would count what the parent had when it started this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _timed(call: Callable[..., Any], values: Sequence[Any]) -> Timed:
    start, busy = time.perf_counter(), time.process_time()
    result = call(*values)
    return Timed(time.perf_counter() - start, time.process_time() - busy, result)
