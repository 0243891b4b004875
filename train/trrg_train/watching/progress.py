"""One line of progress a log entry: losses, speed, time left. With a terminal there is a bar below it."""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

log = logging.getLogger(__name__)

RATES = {"steps_per_second": "steps/s", "images_per_second": "images/s", "tokens_per_second": "tokens/s"}
BESIDE = ("temperature", "grad_norm", "learning_rate")


class Speed:
    """Steps, images and report tokens a second since the last entry, time for evaluation not counted."""

    def __init__(self) -> None:
        """Start the clock."""
        self.paused = 0.0
        self.restart(step=0)

    def restart(self, *, step: int) -> None:
        """Count from here."""
        self.step, self.images, self.tokens = step, 0, 0
        self.start, self.paused = time.perf_counter(), 0.0

    def count(self, *, images: int, tokens: int) -> None:
        """Add a batch of one process."""
        self.images += images
        self.tokens += tokens

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stop the clock."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.paused += time.perf_counter() - start

    def read(self, *, step: int, processes: int) -> dict[str, float]:
        """Figures of all processes since the last reading; what was not counted is left out."""
        seconds = max(time.perf_counter() - self.start - self.paused, 1e-9)
        counts = (step - self.step, self.images * processes, self.tokens * processes)
        self.restart(step=step)
        return {name: count / seconds for name, count in zip(RATES, counts, strict=True) if count}


class Progress(TrainerCallback):
    """The bar of transformers where standard error is a terminal; lines that a log file can hold everywhere."""

    def __init__(self) -> None:
        """Make the bar; it shows when training begins."""
        self.bar: Any = ProgressCallback()
        self.start, self.first = 0.0, 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start clock and bar."""
        self.start, self.first = time.monotonic(), state.global_step
        if sys.stderr.isatty():
            self.bar.on_train_begin(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        if self.bar.training_bar is not None:
            self.bar.on_step_end(args, state, control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write the line; text that an entry may hold is left out."""
        line = self._line(state, logs or {})
        if not line or not state.is_world_process_zero:
            return
        if self.bar.training_bar is not None:
            self.bar.training_bar.write(line, file=sys.stderr)
        else:
            log.info("%s", line)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        if self.bar.training_bar is not None:
            self.bar.on_train_end(args, state, control)

    def _line(self, state: TrainerState, logs: Mapping[str, float]) -> str:
        measured = [f"{name.removeprefix('eval_')} {value:.4g}" for name, value in logs.items() if _is_main(name)]
        if "loss" not in logs:
            return f"step {state.global_step}/{state.max_steps}, validation: {', '.join(measured)}" if measured else ""
        losses = [name for name in logs if name == "loss" or (name.endswith("_loss") and name != "train_loss")]
        parts = [f"{name} {logs[name]:.4g}" for name in (*losses, *BESIDE) if name in logs]
        parts += [f"{logs[name]:.3g} {unit}" for name, unit in RATES.items() if name in logs]
        return ", ".join([f"step {state.global_step}/{state.max_steps}", *parts, f"{self._left(state)} left"])

    def _left(self, state: TrainerState) -> datetime.timedelta:
        """Time left at the pace of this process since it started, evaluations and saving included."""
        done = max(state.global_step - self.first, 1)
        seconds = (time.monotonic() - self.start) / done * (state.max_steps - state.global_step)
        return datetime.timedelta(seconds=round(seconds))


def _is_main(name: str) -> bool:
    return name.startswith("eval_") and "/" not in name
