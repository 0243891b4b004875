"""What a stage measures on held-out studies while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.data.study import Study, label_matrix
from trrg_train.metrics import auc, macro


class Validation(Protocol):
    """Measures a task. A name with ``/`` is a detail: it goes to TensorBoard and not into the progress line."""

    def measure(self, task: Any, *, step: int) -> dict[str, float]:
        """Measure the task after a step, in evaluation mode; what has no value is left out.

        Every process calls it, since losses are means over processes.
        """
        ...

    def scalars(self, task: Any) -> dict[str, float]:
        """Read what the task itself says at any step, such as a learned temperature."""
        ...

    def sample_text(self) -> str:
        """Markdown of sample reports beside their references, as of the last measure; empty where there are none."""
        ...


class PerceptionValidation:
    """Stage 1: the AUC of each observation, in each source."""

    def __init__(self, studies: Sequence[Study], perceive: Callable[[Any], NDArray[np.float64]]) -> None:
        """Keep the labels.

        Args:
            studies: K held-out studies.
            perceive: The task to clue logits (K, 14) of the same studies.
        """
        self.perceive = perceive
        self.labels = label_matrix(studies).astype(np.float64)
        self.sources = [study.source for study in studies]

    def measure(self, task: Any, *, step: int) -> dict[str, float]:
        """Give ``macro_auc``, the mean over sources of the mean over observations, and ``auc/SOURCE/OBSERVATION``."""
        if not self.sources:
            return {}
        each = aucs(self.perceive(task), self.labels, self.sources)
        named = {f"auc/{source}/{name}": value for source, row in each.items() for name, value in row.items()}
        return named | mean_of("macro_auc", [macro(np.array(list(row.values()))) for row in each.values()])

    def scalars(self, task: Any) -> dict[str, float]:
        """Give the learned temperature of perception: similarities are divided by it."""
        return {"temperature": 1.0 / task.perceiver.perception.scale().item()}

    def sample_text(self) -> str:
        """Nothing is written in this stage."""
        return ""


def aucs(
    scores: NDArray[np.float64], labels: NDArray[np.float64], sources: Sequence[str]
) -> dict[str, dict[str, float]]:
    """AUC by source and observation, where both classes are there.

    Args:
        scores: (K, 14).
        labels: (K, 14), 1, 0 or NaN.
        sources: Of each of the K studies; two data sets differ in more than disease, so their studies are not mixed.
    """
    table: dict[str, dict[str, float]] = {}
    for source, rows in rows_of(sources).items():
        values = {name: auc(scores[rows, at], labels[rows, at]) for at, name in enumerate(OBSERVATIONS)}
        table[source] = {name: value for name, value in values.items() if not np.isnan(value)}
    return table


def rows_of(sources: Sequence[str]) -> Mapping[str, NDArray[np.int64]]:
    """Rows of each source, in the order of their names."""
    return {name: np.flatnonzero([source == name for source in sources]) for name in sorted(set(sources))}


def mean_of(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean of what is not NaN under a name; nothing where everything is."""
    mean = macro(np.array(values, dtype=np.float64))
    return {} if np.isnan(mean) else {name: mean}


def held_out(studies: Sequence[Study], count: int) -> list[Study]:
    """Pick at most ``count`` studies of the split ``val``, as many of each source as can be, evenly over its order."""
    val = [study for study in studies if study.split == "val"]
    groups = sorted(rows_of([study.source for study in val]).values(), key=len)
    rows: list[int] = []
    for done, group in enumerate(groups):
        share = min(len(group), (count - len(rows)) // (len(groups) - done))
        rows.extend(group[np.arange(share) * len(group) // max(share, 1)].tolist())
    return [val[row] for row in sorted(rows)]


def write_aside(path: Path, text: str) -> None:
    """Write a text beside its place and rename it, so that a half-written one is never found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".writing")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
