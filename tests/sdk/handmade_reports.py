"""Reports made by hand, for the tests of whatever reads reports."""

from __future__ import annotations

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
