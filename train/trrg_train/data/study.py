"""One study, whatever it was read from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.labeler import OBSERVATIONS


@dataclass(frozen=True)
class Study:
    """One frontal radiograph with its report.

    Attributes:
        study_id: Unique within a run.
        patient: Splits go by it.
        source: Name of the data set.
        split: ``"train"``, ``"val"`` or ``"test"``.
        image: DICOM or an 8-bit image file.
        report: Text with FINDINGS and IMPRESSION.
        labels: Observation to present (True) or absent (False); what is not known is left out.
        view: ``"PA"``, ``"AP"`` or empty.
    """

    study_id: str
    patient: str
    source: str
    split: str
    image: Path
    report: str
    labels: Mapping[str, bool]
    view: str = ""


def label_matrix(studies: Sequence[Study]) -> NDArray[np.float32]:
    """Labels as float32 (K, 14): 1 present, 0 absent, NaN not known."""
    matrix = np.full((len(studies), len(OBSERVATIONS)), np.nan, dtype=np.float32)
    for row, study in enumerate(studies):
        for observation, present in study.labels.items():
            matrix[row, OBSERVATIONS.index(observation)] = float(present)
    return matrix


def split_of(patient: str, *, val: float, test: float) -> str:
    """Split by a hash of the patient, so that it never depends on order or count.

    Args:
        patient: Identifier.
        val: Share of patients for validation.
        test: Share of patients for the test.
    """
    digest = hashlib.sha256(patient.encode()).digest()
    at = int.from_bytes(digest[:8], "big") / 2**64
    if at < test:
        return "test"
    return "val" if at < test + val else "train"
