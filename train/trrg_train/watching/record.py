"""What a stage leaves for the summary of its run: ``records/stageN.json`` in the run's folder.

It holds report text of held-out studies, as the samples do, and belongs on the machine that trains.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from trrg_train.watching.samples import Sample
from trrg_train.watching.validation import write_aside

RECORDS_FOLDER = "records"
DIGITS = 5


class Fitted(NamedTuple):
    """A trained task.

    Attributes:
        task: On the CPU, with trained weights in the main process.
        step: Whose weights it has.
        history: The entries of the log, those before a resume included.
    """

    task: nn.Module
    step: int
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Perceived:
    """Clues of K held-out studies.

    Attributes:
        sources: K names.
        probabilities: float64 (K, 14), calibrated on these same studies.
        thresholds: float64 (14,), chosen on them too: present from there on.
        labels: float64 (K, 14), 1, 0 or NaN.
    """

    sources: tuple[str, ...]
    probabilities: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    labels: NDArray[np.float64]


@dataclass(frozen=True)
class Asserted:
    """What K written reports and their references assert.

    Attributes:
        sources: K names.
        said: bool (K, 14), of the written reports.
        truth: bool (K, 14), of the references.
        samples: A few of both texts.
    """

    sources: tuple[str, ...]
    said: NDArray[np.bool_]
    truth: NDArray[np.bool_]
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class StageRecord:
    """A finished stage.

    Attributes:
        stage: 1 or 2.
        step: Whose weights were saved.
        selected_by: Name of the figure that chose it, or ``"last"``.
        history: Entries of the Trainer's log.
        settings: The configuration of the run.
        commands: That made the data and the model.
        data: Studies and patients of each split.
        found: Stage 1 has perceived, stage 2 has written.
    """

    stage: int
    step: int
    selected_by: str
    history: Sequence[Mapping[str, float]]
    settings: Mapping[str, Any]
    commands: Sequence[str]
    data: str
    found: Perceived | Asserted

    def to_json(self) -> str:
        """Write arrays as lists, NaN as null."""
        return json.dumps(_plain(dataclasses.asdict(self)), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        found = values["found"]
        sources = tuple(found["sources"])
        if "probabilities" in found:
            names = ("probabilities", "thresholds", "labels")
            arrays = (np.array(found[name], dtype=np.float64) for name in names)  # null becomes NaN
            return cls(**values | {"found": Perceived(sources, *arrays)})
        said, truth = (np.array(found[name], dtype=bool) for name in ("said", "truth"))
        return cls(**values | {"found": Asserted(sources, said, truth, tuple(Sample(*s) for s in found["samples"]))})


def write_record(out: Path, record: StageRecord) -> None:
    """Put a record into the run's folder, in place of an earlier one and of those of stages that came after that."""
    for later in (out / RECORDS_FOLDER).glob("stage*.json"):
        if later.name > f"stage{record.stage}.json":
            later.unlink()
    write_aside(out / RECORDS_FOLDER / f"stage{record.stage}.json", record.to_json())


def read_records(out: Path) -> list[StageRecord]:
    """Read the records of a run, stage 1 first."""
    paths = sorted((out / RECORDS_FOLDER).glob("stage*.json"))
    return [StageRecord.from_json(path.read_text(encoding="utf-8")) for path in paths]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
