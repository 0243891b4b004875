"""Reader of a MIMIC-CXR-JPG folder: csv files, JPEG images and the reports of MIMIC-CXR.

    mimic-cxr-2.0.0-split.csv[.gz]       dicom_id, study_id, subject_id, split
    mimic-cxr-2.0.0-metadata.csv[.gz]    dicom_id, subject_id, study_id, ViewPosition, ViewCodeSequence_CodeMeaning, …
    mimic-cxr-2.0.0-chexpert.csv[.gz]    subject_id, study_id and 13 diseases and devices, "No Finding"
    files/p10/p10000032/s50414267/*.jpg
    files/p10/p10000032/s50414267.txt    from mimic-cxr-reports.zip of MIMIC-CXR

Source: https://physionet.org/content/mimic-cxr-jpg/2.1.0/, whose csv files keep 2.0.0 in their names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.data.cleaning import clean_report
from trrg_train.data.csv_rows import csv_rows
from trrg_train.data.sections import extract_sections, findings_and_impression, headed_report
from trrg_train.data.study import Study, frontal_index, split_named, view_named

logger = logging.getLogger(__name__)

VERSION = "mimic-cxr-2.0.0"
CERTAIN: Mapping[str, bool] = {"1": True, "0": False}
"""CheXpert's values that become a label; -1 (uncertain) and blank (not mentioned) are left out."""

Row = Mapping[str, str]


@dataclass(frozen=True)
class _Image:
    """A row of the metadata with its split."""

    name: str
    view: str
    split: str


def read_mimic_cxr(folder: Path, *, source: str) -> list[Study]:
    """Read the studies that have a frontal image and a report about it.

    The frontal image is the first PA, else the first AP in the order of the metadata; where View Position is empty,
    the meaning of the view code counts. The report is its findings and impression, cleaned (``clean_report``); where
    the text has neither heading, its last paragraph. Studies without a frontal image or without such text are left
    out and counted in the log. Images are not opened: ``check_dataset`` counts missing ones.

    Args:
        folder: Holds the csv files and ``files/``.
        source: Name of the data set.

    Raises:
        UsageError: A csv file, a column, an image's split or a report is missing, a value is unknown, or a study is
            in two splits; names file and row.
    """
    studies = _images(folder)
    labels = _labels(folder)
    found, without_frontal, without_text = [], 0, 0
    for (patient, number), (images, where) in studies.items():
        frontal = frontal_index([image.view for image in images])
        if frontal is None:
            without_frontal += 1
            continue
        base = folder / "files" / f"p{patient[:2]}" / f"p{patient}"
        text = _report(base / f"s{number}.txt", where)
        study = _study(images, frontal, base / f"s{number}", text=text, source=source, labels=labels.get(number, {}))
        if study.report:
            found.append(study)
        else:
            without_text += 1
    logger.info(
        "%s: %d studies; left out: %d without a frontal image, %d without findings or impression",
        source,
        len(found),
        without_frontal,
        without_text,
    )
    return found


def _study(
    images: list[_Image], frontal: int, folder: Path, *, text: str, source: str, labels: Mapping[str, bool]
) -> Study:
    findings, impression = findings_and_impression(text)
    sections = extract_sections(text)
    paths = tuple(folder / f"{image.name}.jpg" for image in images)
    return Study(
        study_id=folder.name.removeprefix("s"),
        patient=folder.parent.name.removeprefix("p"),
        source=source,
        split=images[frontal].split,
        image=paths[frontal],
        report=headed_report(clean_report(findings), clean_report(impression)),
        labels=labels,
        view=images[frontal].view,
        images=paths,
        views=tuple(image.view for image in images),
        indication=clean_report(sections.get("indication") or sections.get("history", "")),
        comparison=clean_report(sections.get("comparison", "")),
    )


def _images(folder: Path) -> dict[tuple[str, str], tuple[list[_Image], str]]:
    """Patient and study → its images, in the order of the metadata, and its first row there."""
    splits = {
        row["dicom_id"]: split_named(row["split"], where) for row, where in _rows(folder, "split", "dicom_id", "split")
    }
    studies: dict[tuple[str, str], tuple[list[_Image], str]] = {}
    for row, where in _rows(folder, "metadata", "dicom_id", "subject_id", "study_id", "ViewPosition"):
        split = splits.get(row["dicom_id"])
        if split is None:
            raise UsageError(f"{where}: this image has no row in {VERSION}-split.csv; take both files of one version")
        view = view_named(row["ViewPosition"] or row.get("ViewCodeSequence_CodeMeaning") or "")
        images, first = studies.setdefault((row["subject_id"], row["study_id"]), ([], where))
        images.append(_Image(row["dicom_id"], view, split))
        if images[0].split != split:
            raise UsageError(f"{where}: the study is in {split} here and in {images[0].split} at {first}")
    return studies


def _labels(folder: Path) -> dict[str, dict[str, bool]]:
    """Study → labels that are certain."""
    labels: dict[str, dict[str, bool]] = {}
    for row, where in _rows(folder, "chexpert", "study_id", *OBSERVATIONS):
        values = {name: row[name].strip().removesuffix(".0") for name in OBSERVATIONS}
        wrong = sorted({value for value in values.values() if value not in ("1", "0", "-1", "")})
        if wrong:
            raise UsageError(f"{where}: a label must be 1, 0, -1 or blank, not {wrong[0]!r}")
        labels[row["study_id"]] = {name: CERTAIN[value] for name, value in values.items() if value in CERTAIN}
    return labels


def _rows(folder: Path, kind: str, *columns: str) -> Iterator[tuple[Row, str]]:
    """The rows of a csv file, one at a time, each with its file and line."""
    plain = folder / f"{VERSION}-{kind}.csv"
    packed = plain.with_name(f"{plain.name}.gz")
    if not plain.is_file() and not packed.is_file():
        raise UsageError(f"neither {plain.name} nor {packed.name} is in {folder}")
    return csv_rows(plain if plain.is_file() else packed, columns=columns)


def _report(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{where}: the report {path.name} is missing below files/; unpack mimic-cxr-reports.zip there"
        ) from error
