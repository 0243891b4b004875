"""How long the steps of a report took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Wall-clock milliseconds of each step.

    Attributes:
        timings_ms: Step → milliseconds.
    """

    def __init__(self) -> None:
        """Nothing was measured yet."""
        self.timings_ms: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure what runs inside; a step that is taken again adds up."""
        start = time.perf_counter()
        yield
        taken = (time.perf_counter() - start) * 1e3
        self.timings_ms[name] = round(self.timings_ms.get(name, 0.0) + taken, 3)
