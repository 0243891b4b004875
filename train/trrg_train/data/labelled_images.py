"""Reader of real radiographs with labels but no report: labels.csv and image files.

The text is composed by the phantom's grammar from the labels, so no report text of any hospital is used.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.data.csv_rows import csv_rows
from trrg_train.data.finding import KINDS, Finding
from trrg_train.data.grammar import compose_report
from trrg_train.data.study import Study, split_of

KIND_OF_LABEL: Mapping[str, str | None] = {
    # NIH ChestX-ray14
    "Pneumonia": "pneumonia",
    "Effusion": "pleural effusion",
    "Edema": "edema",
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Infiltration": "opacity",
    "Nodule": "nodule",
    "Mass": "mass",
    "Pleural_Thickening": "pleural thickening",
    "Pneumothorax": "pneumothorax",
    "No Finding": None,
    # no observation of the CheXpert set says these
    "Emphysema": None,
    "Fibrosis": None,
    "Hernia": None,
    # Hannover
    "COVID-19": "pneumonia",
}
"""The one table from other label sets to kinds of findings (design section 6)."""

NEVER_LABELLED = frozenset({"Support Devices", "Fracture", "Enlarged Cardiomediastinum"})
"""What the NIH label set does not know."""

VAL_SHARE, TEST_SHARE = 0.1, 0.2


def read_labelled_images(folder: Path, *, source: str, prefix: str) -> list[Study]:
    """Read the rows of ``labels.csv`` (file, patient, labels joined by a bar, view) whose file has the prefix.

    Rows whose labels say nothing about the 14 observations are left out.

    Raises:
        UsageError: The file is missing, or a row has an unknown label; names the row.
    """
    path = folder / "labels.csv"
    studies = []
    for row, where in csv_rows(path, columns=("file", "patient", "labels", "view")):
        if row["file"].startswith(prefix):
            names = row["labels"].split("|")
            unknown = [name for name in names if name not in KIND_OF_LABEL]
            if unknown:
                raise UsageError(f"{where}: unknown labels {', '.join(unknown)}")
            study = _study(row, names, folder, source)
            if study is not None:
                studies.append(study)
    return studies


def _study(row: Mapping[str, str], names: list[str], folder: Path, source: str) -> Study | None:
    kinds = _kinds(names)
    if not kinds and names != ["No Finding"]:
        return None
    unknown = _unknown(names)
    present = {observation for kind in kinds for observation in KINDS[kind]}
    if not kinds:
        present.add("No Finding")
    rng = np.random.default_rng(zlib.crc32(row["file"].encode()))
    findings = [Finding(kind) for kind in kinds]
    return Study(
        study_id=f"{source}-{row['file']}",
        patient=row["patient"],
        source=source,
        split=split_of(row["patient"], val=VAL_SHARE, test=TEST_SHARE),
        image=folder / row["file"],
        report=compose_report(findings, rng=rng, view=row["view"].upper(), unknown=unknown),
        labels={o: o in present for o in OBSERVATIONS if o not in unknown},
        view=row["view"].upper(),
    )


def _kinds(names: list[str]) -> list[str]:
    kinds = sorted({kind for name in names if (kind := KIND_OF_LABEL[name]) is not None})
    if "opacity" in kinds and {"pneumonia", "consolidation"} & set(kinds):
        kinds.remove("opacity")  # those sentences mention the opacity already
    return kinds


def _unknown(names: list[str]) -> frozenset[str]:
    """Observations that the labels leave open."""
    if names == ["COVID-19"]:
        return frozenset(OBSERVATIONS) - {"Pneumonia", "Lung Opacity", "No Finding"}
    opacity = {"Pneumonia", "Consolidation", "Infiltration"} & set(names)
    vague = {"Atelectasis", "Edema", "Fibrosis", "Nodule", "Mass"} & set(names)
    return NEVER_LABELLED | (frozenset({"Lung Opacity"}) if vague and not opacity else frozenset())
