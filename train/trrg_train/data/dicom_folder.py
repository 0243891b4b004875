"""Reader of a folder of DICOM files with a csv of their reports: what a hospital or a lab has at hand.

``reports.csv`` has one row an image: ``path`` (relative to the folder) and ``report``; optional ``study``, ``patient``
and ``split``. Where there is no study or patient column, both are read from the file's header and replaced by a hash
at once, so that neither a Study Instance UID nor a Patient ID gets into a message, a log or a cache. The hash groups,
it does not anonymise: whoever knows an identifier can compute it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trrg_sdk import dicom_tags
from trrg_sdk.errors import DicomError, UsageError
from trrg_train.data.annotation_json import mentioned_labels
from trrg_train.data.cleaning import clean_report
from trrg_train.data.csv_rows import csv_rows
from trrg_train.data.sections import extract_sections, findings_and_impression, headed_report
from trrg_train.data.study import Study, frontal_index, split_named, split_of, view_named

CSV = "reports.csv"
VAL_SHARE, TEST_SHARE = 0.1, 0.2
"""Shares of the patients where the csv names no split."""

_HEADER = ("StudyInstanceUID", "PatientID", "ViewPosition", "PatientAge", "PatientSex")


@dataclass(frozen=True)
class _Image:
    """A row of the csv with what the header adds."""

    where: str
    path: Path
    study: str
    patient: str
    split: str
    report: str
    view: str
    age: str
    sex: str


def read_dicom_folder(folder: Path, *, source: str) -> list[Study]:
    """Read the rows of ``reports.csv``; rows of one study become one ``Study``.

    The report stands in one row of its study or, the same, in several; its findings and impression are cleaned
    (``clean_report``), a text without headings is taken whole. Labels come from the sentence labeler. The frontal
    image is the first PA, else AP, else the first row's. Without a split column the split follows the patient.

    Args:
        folder: Holds ``reports.csv`` and the files.
        source: Name of the data set; begins the ids of studies that the csv does not name.

    Raises:
        UsageError: The csv, a column, a value or a file is missing or unreadable, or the rows of a study disagree;
            names file and line.
    """
    path = folder / CSV
    studies: dict[str, list[_Image]] = {}
    for row, where in _rows(path):
        image = _image(row, folder, source, where)
        studies.setdefault(image.study, []).append(image)
    return [_study(images, source) for images in studies.values()]


def _rows(path: Path) -> list[tuple[dict[str, str], str]]:
    """The rows with file and line, all columns either filled in everywhere or absent."""
    rows = list(csv_rows(path, columns=("path", "report")))
    for row, where in rows:
        for name in row.keys() & {"path", "study", "patient", "split"}:
            # One patient named in some rows and hashed in others would be two, in two splits.
            if not row[name].strip():
                raise UsageError(f"{where}: {name} is empty; fill it in every row or leave the column out")
    return rows


def _image(row: Mapping[str, str], folder: Path, source: str, where: str) -> _Image:
    path = folder / row["path"]
    header = _header(path, where)
    study, patient = (row.get("study") or "").strip(), (row.get("patient") or "").strip()
    patient = patient or _hashed(header, "PatientID", where)
    split = row.get("split")
    return _Image(
        where=where,
        path=path,
        study=study or f"{source}-{_hashed(header, 'StudyInstanceUID', where)}",
        patient=patient,
        split=split_named(split, where) if split else split_of(patient, val=VAL_SHARE, test=TEST_SHARE),
        report=row["report"].strip(),
        view=view_named(header["ViewPosition"]),
        age=header["PatientAge"],
        sex=header["PatientSex"] if header["PatientSex"] in ("F", "M", "O") else "",
    )


def _study(images: Sequence[_Image], source: str) -> Study:
    first = images[0]
    for image in images[1:]:
        if image.patient != first.patient or image.split != first.split:
            raise UsageError(f"{image.where}: this study has another patient or split at {first.where}")
    reports = {image.report: image for image in images if image.report}
    if len(reports) != 1:
        said = "no report" if not reports else "two reports"
        raise UsageError(f"{images[-1].where}: this study has {said}, one was expected; it begins at {first.where}")
    (report,) = reports
    views = tuple(image.view for image in images)
    chosen = images[frontal_index(views) or 0]
    text = _described(report)
    sections = extract_sections(report)
    return Study(
        study_id=first.study,
        patient=first.patient,
        source=source,
        split=first.split,
        image=chosen.path,
        report=text,
        labels=mentioned_labels(text),
        view=chosen.view if chosen.view in ("PA", "AP") else "",
        images=tuple(image.path for image in images),
        views=views,
        indication=clean_report(sections.get("indication") or sections.get("history", "")),
        comparison=clean_report(sections.get("comparison", "")),
        age=chosen.age,
        sex=chosen.sex,
    )


def _described(report: str) -> str:
    """Findings and impression under their headings; a text without any heading as it is."""
    if set(extract_sections(report)) <= {""}:
        return clean_report(report)
    findings, impression = findings_and_impression(report)
    return headed_report(clean_report(findings), clean_report(impression))


def _header(path: Path, where: str) -> dict[str, str]:
    """The few elements that are needed, as texts; empty where a file has none."""
    import pydicom

    try:
        with dicom_tags.quiet():  # pydicom's warnings show element values
            tags = [*_HEADER, "ViewCodeSequence"]
            dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=tags)
            header = {name: str(dicom_tags.raw(dataset, name) or "").strip() for name in _HEADER}
            age = dicom_tags.age_years(dataset)
            sequence = dicom_tags.raw(dataset, "ViewCodeSequence")
            meaning = str(dicom_tags.raw(sequence[0], "CodeMeaning") or "") if sequence else ""
    except OSError as error:
        raise UsageError(f"{where}: cannot read the file ({type(error).__name__}); check path and rights") from error
    except DicomError as error:
        raise UsageError(f"{where}: {error}") from error
    except Exception as error:  # a broken structure raises whatever the parser trips over, with values in its text
        raise UsageError(f"{where}: the file is no readable DICOM ({type(error).__name__})") from None
    return {
        **header,
        "ViewPosition": header["ViewPosition"] or meaning,
        "PatientAge": "" if age is None else str(int(age)),
    }


def _hashed(header: Mapping[str, str], keyword: str, where: str) -> str:
    value = header[keyword]
    if not value:
        column = "patient" if keyword == "PatientID" else "study"
        raise UsageError(f"{where}: the file has no {dicom_tags.label(keyword)}; add a column {column} to the csv")
    return hashlib.sha256(value.encode()).hexdigest()[:16]
