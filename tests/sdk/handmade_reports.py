"""Reports made by hand, for the tests of whatever reads reports."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

from tests.sdk.chest_dicom import MARK
from trrg_sdk.context import StudyContext
from trrg_sdk.reading import Picture, Reading
from trrg_sdk.report import (
    ClueScore,
    ClueScores,
    Evidence,
    GateReason,
    GateResult,
    GenerationInfo,
    HeatPeak,
    ImageInfo,
    Omission,
    Provenance,
    Report,
    Sentence,
)

SOP_UID = "2.25.111122223333"


def score(name: str, probability: float, *, threshold: float = 0.5, forced: bool = False) -> ClueScore:
    return ClueScore(name, probability, threshold, probability >= threshold, forced)


def full_report() -> Report:
    """Every field is filled, so that a writer that forgets one is caught."""
    peak = HeatPeak(row=4, column=1, rows=6, columns=6, probability=0.97)
    effusion = Evidence("Pleural Effusion", 0.93, 0.5, False, peak)
    edema = Evidence("Edema", 0.875, 0.4, True, None)
    return Report(
        text="FINDINGS: There is a left pleural effusion. No edema. IMPRESSION: Effusion of 王.",
        sentences=(
            Sentence(
                "There is a left pleural effusion.",
                "findings",
                {"Pleural Effusion": "present"},
                "supported",
                (effusion,),
                -0.25,
            ),
            Sentence("No edema.", "findings", {"Edema": "absent"}, "contradicted", (edema,), -0.5),
            Sentence("Effusion of 王.", "impression", {}, "not_checkable", (), -1.0),
        ),
        clues=ClueScores((score("Pleural Effusion", 0.93), score("Edema", 0.875, threshold=0.4, forced=True))),
        omissions=(Omission("Edema", 0.875, 0.4, True, None),),
        gate=GateResult(reasons=(GateReason("lateral", "A lateral view is not reported.", "Send the frontal one."),)),
        images=(
            ImageInfo(SOP_UID, "PA", True, ""),
            ImageInfo(SOP_UID + ".2", "LATERAL", False, "A lateral view is not reported."),
        ),
        notes=("The file has no display window.",),
        generation=GenerationInfo(tokens=21, stopped="eos"),
        timings_ms={"load": 12.5, "total": 98.0},
        provenance=Provenance(
            "mini-0123abcd", "ab" * 32, "cpu", "int8", "0.1.0", "Research only, not for clinical use."
        ),
    )


MADE_AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def full_context(**values: Any) -> StudyContext:
    """A context with every value, all of the patient's marked."""
    filled: dict[str, Any] = {
        "patient_name": f"{MARK}^Jane",
        "patient_id": f"{MARK}-1",
        "issuer_of_patient_id": f"{MARK}-SITE",
        "patient_birth_date": "19010203",
        "patient_sex": "F",
        "study_instance_uid": "2.25.1",
        "study_date": "19990807",
        "study_time": "101112",
        "study_id": f"{MARK}S",
        "study_description": f"Thorax {MARK}",
        "accession_number": f"{MARK}A",
        "referring_physician_name": f"{MARK}^Doctor",
        "series_instance_uid": "2.25.1.1",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1",
        "sop_instance_uid": SOP_UID,
        "burned_in_annotation": "NO",
    }
    return StudyContext(**(filled | values))


def full_picture() -> Picture:
    """A ramp with one warm patch for each clue."""
    heat = np.full((6, 6), 0.1, np.float32)
    heat[4, 1] = 0.97
    pixels = np.linspace(0, 1, 200 * 160, dtype=np.float32).reshape(200, 160)
    return Picture(pixels, {"Pleural Effusion": heat, "Edema": heat.T.copy()}, box=(0.0, 0.1, 1.0, 0.8))


def full_reading(**values: Any) -> Reading:
    """``full_report`` with all that filing it needs; ``values`` are those of its context."""
    return Reading(full_report(), full_context(**values), full_picture(), MADE_AT)
