"""One study, whatever it was read from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS

SPLITS = ("train", "val", "test")

SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",  # MIMIC-CXR's word
    "validation": "val",
    "test": "test",
}
"""What data sets call the three splits, and what they are called here."""

FRONTAL_VIEWS = ("PA", "AP", "FRONTAL")
"""Frontal views, the one that training prefers first."""

_VIEW_WORDS = (
    ("posteroanterior", "PA"),
    ("anteroposterior", "AP"),
    ("lateral", "LATERAL"),
    ("frontal", "FRONTAL"),
)
_VIEW_CODES = {"PA": "PA", "AP": "AP", "LL": "LATERAL", "RL": "LATERAL", "LAT": "LATERAL"}


@dataclass(frozen=True)
class Study:
    """One radiographic study with its report. What belongs to the patient stays out of its ``repr``.

    Attributes:
        study_id: Unique within a run.
        patient: Splits go by it.
        source: Name of the data set.
        split: ``"train"``, ``"val"`` or ``"test"``.
        image: The image that training uses, a frontal one where the data set says which that is: DICOM or an 8-bit
            image file.
        report: Text with FINDINGS and IMPRESSION, or whichever of them the data set has.
        labels: Observation to present (True) or absent (False); what is not known is left out.
        view: ``"PA"`` or ``"AP"`` of ``image``, or empty.
        images: Every image of the study in the data set's order, ``image`` among them. Left empty it becomes
            ``(image,)``.
        views: One for each of ``images``: ``"PA"``, ``"AP"``, ``"FRONTAL"`` (frontal, direction unknown),
            ``"LATERAL"`` or empty (unknown or something else). Left empty it becomes ``view`` for ``image`` and empty
            for the others.
        indication: Why the study was made, as written; empty where unknown, as are the following.
        comparison: What it was compared with, as written.
        age: In years, a number or a range such as ``"50-60"``.
        sex: ``"F"``, ``"M"`` or ``"O"``.
    """

    study_id: str
    patient: str = field(repr=False)
    source: str
    split: str
    image: Path
    report: str = field(repr=False)
    labels: Mapping[str, bool]
    view: str = ""
    images: tuple[Path, ...] = ()
    views: tuple[str, ...] = ()
    indication: str = field(default="", repr=False)
    comparison: str = field(default="", repr=False)
    age: str = field(default="", repr=False)
    sex: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Fill in images and views.

        Raises:
            ValueError: ``image`` is none of ``images``, or there is another number of views than of images.
        """
        images = self.images or (self.image,)
        if self.image not in images:
            raise ValueError(f"image must be one of the {len(images)} images")
        views = self.views or tuple(self.view if image == self.image else "" for image in images)
        if len(views) != len(images):
            raise ValueError(f"one view for each of {len(images)} images was expected, {len(views)} came")
        object.__setattr__(self, "images", images)  # the way to set a field of a frozen dataclass
        object.__setattr__(self, "views", views)


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


def split_named(name: object, where: str) -> str:
    """The split that a data set calls so.

    Args:
        name: As the data set writes it.
        where: File and row, for the message.

    Raises:
        UsageError: It is none of ``SPLIT_NAMES``.
    """
    split = SPLIT_NAMES.get(str(name).strip().lower())
    if split is None:
        raise UsageError(f"{where}: split must be one of {', '.join(SPLIT_NAMES)}, not {name!r}")
    return split


def view_named(text: str) -> str:
    """The view that a data set calls so, in any of the usual spellings.

    Args:
        text: A DICOM View Position ("PA", "LL"), the meaning of a view code ("postero-anterior", "left lateral") or
            a plain word ("Frontal").

    Returns:
        ``"PA"``, ``"AP"``, ``"FRONTAL"``, ``"LATERAL"`` or empty. Oblique, decubitus and apical projections ("LAO",
        "AP LLD", "AP AXIAL") are none of these.
    """
    code = _VIEW_CODES.get(text.strip().upper())
    if code is not None:
        return code
    plain = text.lower().replace("-", "")
    return next((view for word, view in _VIEW_WORDS if word in plain), "")


def frontal_index(views: Sequence[str]) -> int | None:
    """Index of the view that training uses: the first PA, else AP, else FRONTAL; None where there is no frontal."""
    return next((views.index(view) for view in FRONTAL_VIEWS if view in views), None)
