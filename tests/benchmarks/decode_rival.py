"""llama.cpp on the reports of the workload ``iu``: what the fastest of the peers does without drafts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from decode_peers import LlamaCpp
from decode_writer import Task, iu_tasks

RIVALS = {f"llama.cpp {kind}": kind for kind in ("q8_0", "q6_K", "q4_0")}


class RivalTurn(NamedTuple):
    """All reports once.

    Attributes:
        seconds: For those with another text than any before.
        tokens: Of these, end tokens counted.
        distinct: How many there are.
    """

    seconds: float
    tokens: int
    distinct: int


class Rival:
    """llama.cpp with reports to write, in a process of its own."""

    def __init__(self, engine: LlamaCpp, tasks: list[Task], *, eos: int, limit: int, weights: int) -> None:
        self._engine = engine
        self._tasks = tasks
        self._eos = eos
        self._limit = limit
        self._weights = weights

    def turn(self) -> RivalTurn:
        """Write all reports; as everywhere, a text that comes again does not count."""
        seconds, tokens, texts = 0.0, 0, set[tuple[int, ...]]()
        for task in self._tasks:
            start = time.perf_counter()
            text = self._written(task)
            took = time.perf_counter() - start
            if text not in texts:
                texts.add(text)
                seconds, tokens = seconds + took, tokens + len(text) + 1
        return RivalTurn(seconds, tokens, len(texts))

    def texts(self) -> list[tuple[int, ...]]:
        """The tokens of all reports."""
        return [self._written(task) for task in self._tasks]

    def _written(self, task: Task) -> tuple[int, ...]:
        return tuple(self._engine.follow(task.prompt, task.text, eos=self._eos, limit=self._limit))

    def size(self) -> int:
        """Bytes that a pass reads, and the token embeddings beside them in the file."""
        return self._weights


def open_rival(folder: Path, name: str, kind: str, *, studies: int | None, threads: int) -> Rival:
    """Open llama.cpp on the decoder of the IU reports.

    Args:
        folder: Of ``iu_decoder.py``.
        name: Of ``RIVALS``.
        kind: Of ``decode_reports.KINDS``.
        studies: At most; None for all.
        threads: For the engine.
    """
    from iu_workload import load_workload

    path, workload = folder / "gguf" / f"{RIVALS[name]}.gguf", load_workload(folder)
    engine = LlamaCpp(path, threads=threads, width=workload.spec.hidden_size)
    tasks = iu_tasks(workload, kind, studies)
    return Rival(engine, tasks, eos=workload.eos, limit=workload.limit, weights=path.stat().st_size)
