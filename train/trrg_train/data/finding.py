"""What can be wrong in a radiograph: the vocabulary that the phantom draws and the grammar speaks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from trrg_sdk.labeler import OBSERVATIONS

Side = Literal["left", "right", "bilateral", ""]
Severity = Literal["small", "moderate", "large", ""]

KINDS: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("Cardiomegaly",),
    "widened mediastinum": ("Enlarged Cardiomediastinum",),
    "opacity": ("Lung Opacity",),
    "consolidation": ("Consolidation", "Lung Opacity"),
    "pneumonia": ("Pneumonia", "Lung Opacity"),
    "edema": ("Edema",),
    "atelectasis": ("Atelectasis",),
    "nodule": ("Lung Lesion",),
    "mass": ("Lung Lesion",),
    "pneumothorax": ("Pneumothorax",),
    "pleural effusion": ("Pleural Effusion",),
    "pleural thickening": ("Pleural Other",),
    "rib fracture": ("Fracture",),
    "pacemaker": ("Support Devices",),
    "central venous catheter": ("Support Devices",),
    "endotracheal tube": ("Support Devices",),
    "nasogastric tube": ("Support Devices",),
    "chest tube": ("Support Devices",),
}
"""Each kind of finding and the observations that it makes present (the CheXpert set, design section 6)."""


@dataclass(frozen=True)
class Finding:
    """One finding: what, where, how much.

    Attributes:
        kind: A key of ``KINDS``.
        side: The patient's side; empty where a side makes no sense (heart, mediastinum) or is not known.
        place: ``"upper"``, ``"mid"`` or ``"lower"`` lung zone, ``"base"``, ``"apex"``; empty where not known.
        severity: Empty where not known.
        box: x0, y0, x1, y1 as fractions of width and height of the drawn image; None where not drawn.
    """

    kind: str
    side: Side = ""
    place: str = ""
    severity: Severity = ""
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse a kind that nobody can draw or say."""
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of finding {self.kind!r}; known: {', '.join(KINDS)}")


def study_labels(findings: Iterable[Finding]) -> dict[str, bool]:
    """Present or absent for each of the 14 observations, when everything about the study is known.

    Support devices do not take "No Finding" away (as in the CheXpert labels).
    """
    present = {observation for finding in findings for observation in KINDS[finding.kind]}
    if not present - {"Support Devices"}:
        present.add("No Finding")
    return {observation: observation in present for observation in OBSERVATIONS}
