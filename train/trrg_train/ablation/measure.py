"""The figures of one run on the held-out studies, and the floor of all runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.labeler import NO_FINDING, OBSERVATIONS
from trrg_train.data.study import Study, label_matrix
from trrg_train.evaluate import FORCED_STUDIES, clue_auc, forced_figures, laterality, report_figures
from trrg_train.evaluation.clinical import SENTENCE_LABELER, asserted, best_constant_labels
from trrg_train.writers import CheckpointWriter


@dataclass(frozen=True)
class Outcome:
    """What one variant with one seed reached; None where the studies do not allow a figure.

    Attributes:
        variant: Its name.
        seed: Of everything random.
        studies: Number of held-out studies.
        macro_f1: Clinical macro-F1 of the written reports, over the observations that the studies have.
        shuffled_f1: The same with the reports dealt out to other studies.
        clue_auc: Macro AUC of the clue scores.
        recall: Share of all present findings (all observations but No Finding) that the reports assert.
        laterality: Share of the findings asserted by both report and reference that are on the reference's side.
        lateral_findings: How many those are.
        distinct_reports: How many different reports were written.
        forced_up: Share of clues forced up, one at a time, that the report then asserts.
        forced_down: Share of clues forced down that the report then does not assert.
    """

    variant: str
    seed: int
    studies: int
    macro_f1: float | None
    shuffled_f1: float | None
    clue_auc: float | None
    recall: float | None
    laterality: float | None
    lateral_findings: int
    distinct_reports: int
    forced_up: float | None
    forced_down: float | None

    def save(self, path: Path) -> None:
        """Write as JSON, aside and renamed: where the file is, the run is finished."""
        aside = path.with_suffix(".writing")
        aside.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        aside.replace(path)


def read_outcome(path: Path) -> Outcome:
    """Read what :meth:`Outcome.save` wrote."""
    return Outcome(**json.loads(path.read_text(encoding="utf-8")))


def measure(writer: CheckpointWriter, studies: Sequence[Study]) -> dict[str, float | int | None]:
    """Have reports written for the studies and compare them with the truth.

    Returns:
        The fields of :class:`Outcome` from ``studies`` on.
    """
    written = [w for w in writer.write(studies) if w is not None]  # a checkpoint refuses nothing
    texts = [w.text for w in written]
    labels = label_matrix(studies).astype(np.float64)
    said = asserted(texts, SENTENCE_LABELER, uncertain="absent")
    figures = report_figures(said, labels)
    sides = laterality(texts, [study.report for study in studies])
    forced = forced_figures(writer, studies[:FORCED_STUDIES])
    probabilities = np.stack([w.probabilities for w in written])
    return {
        "studies": len(studies),
        "macro_f1": figures["macro_f1"],
        "shuffled_f1": figures["macro_f1_images_shuffled"],
        "clue_auc": clue_auc(probabilities, labels, np.array([study.view for study in studies]))["macro"],
        "recall": positive_recall(said, labels),
        "laterality": sides["same"],
        "lateral_findings": sides["findings"],
        "distinct_reports": len(set(texts)),
        "forced_up": forced["asserted_when_forced_up"],
        "forced_down": forced["not_asserted_when_forced_down"],
    }


def positive_recall(said: NDArray[np.bool_], labels: NDArray[np.float64]) -> float | None:
    """Share of the present findings that are asserted, No Finding left out; (K, 14) and (K, 14) with NaN."""
    disease = [at for at, name in enumerate(OBSERVATIONS) if name != NO_FINDING]
    present = np.nan_to_num(labels[:, disease]) > 0.5
    return round(float(said[:, disease][present].mean()), 4) if present.any() else None


def constant_floor(train: Sequence[Study], held_out: Sequence[Study]) -> float:
    """Macro-F1 of one report for everybody that asserts the most frequent observations; train says how many."""
    of_train, truth = (np.nan_to_num(label_matrix(part)) > 0.5 for part in (train, held_out))
    floor = best_constant_labels(of_train, truth)["macro F1 (14)"]
    return float(floor.at(np.ones((1, len(truth))))[0])
