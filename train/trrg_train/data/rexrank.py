"""Reader of ReXrank's JSON: a mapping of study id to record, or a list of records with an id.

Fields: https://github.com/rajpurkarlab/ReXrank, data/ (``image_path``, ``key_image_path``, ``frontal_lateral``,
``ap_pa``, ``section_findings``, ``section_impression``, ``report``, ``context``, ``split``, ``subject_id``). The
published files write the context as one text ("Age:50-60.Gender:M.Indication: … Comparison: …") and missing values as
NaN; a context with the keys age, gender, indication and comparison is read alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trrg_sdk.errors import UsageError
from trrg_train.data.annotation_json import mentioned_labels
from trrg_train.data.cleaning import clean_report
from trrg_train.data.sections import findings_and_impression, headed_report
from trrg_train.data.study import Study, frontal_index, split_named, view_named

IMAGE_FOLDERS = ("images", "files", "PNG")
"""Where the images of IU X-ray, MIMIC-CXR and CheXpert Plus lie beside their JSON file."""

_CONTEXT = re.compile(r"\b(Age|Gender|Indication|Comparison)\s*:", re.IGNORECASE)
_PATIENT = re.compile(r"(CXR\d+|patient\d+)_.*")  # ids of IU X-ray and CheXpert Plus
_NOTHING = frozenset({"", "nan", "none", "null"})


def read_rexrank(path: Path, *, source: str, images: Path | None = None, reports: bool = True) -> list[Study]:
    """Read all studies of a JSON file.

    The frontal image is ``key_image_path`` where the record has it, else the first PA, AP or frontal view, else the
    first image. Labels come from the sentence labeler. "None." and NaN count as empty. A record without a split
    belongs to the test: that is what the files are for. A record without any report is refused, unless ``reports`` is
    False: then it is a study to write a report for.

    Args:
        path: The JSON file, or a folder with its JSON files. Image paths are relative to the first of
            ``IMAGE_FOLDERS`` beside the file, else to the file's own folder; a leading slash is taken off.
        source: Name of the data set.
        images: The folder that image paths are relative to, where it is not one beside the file.
        reports: Whether every record needs a report.

    Raises:
        UsageError: No file, no JSON, or a field is missing or malformed; names file and record.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"no .json file in {path}")
    studies: list[Study] = []
    for file in files:
        beside = (file.parent / name for name in IMAGE_FOLDERS)
        base = images or next((folder for folder in beside if folder.is_dir()), file.parent)
        for name, record, where in _records(file):
            study = _study(name, record, base, source, where)
            if reports and not study.report:
                raise UsageError(f"{where}: section_findings, section_impression or report is needed")
            studies.append(study)
    return studies


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Id, record, and where it stands."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"no file {path}; name ReXrank's JSON file or a folder that holds one") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, (dict, list)):
        raise UsageError(f"{path}: a list or an object of studies was expected, not {type(content).__name__}")
    named = content.items() if isinstance(content, dict) else ((None, record) for record in content)
    for row, (name, record) in enumerate(named):
        where = f"{path}: study {row}"
        if not isinstance(record, dict):
            raise UsageError(f"{where}: an object was expected, not {type(record).__name__}")
        name = name if name is not None else record.get("study_id", record.get("id"))
        if name is None:
            raise UsageError(f"{where}: a study of a list needs a study_id or an id")
        yield str(name), record, where


def _study(name: str, record: Mapping[str, Any], base: Path, source: str, where: str) -> Study:
    listed = record.get("image_path")
    if not (isinstance(listed, list) and listed and all(isinstance(item, str) for item in listed)):
        raise UsageError(f"{where}: image_path must be a list of at least one path")
    views = _views(record, len(listed))
    key = _frontal(record, listed, views, where)
    paths = tuple(base / item.lstrip("/") for item in listed)
    report = _report(record)
    context = _context(record, where)
    return Study(
        study_id=name,
        patient=_patient(name, record),
        source=source,
        split=split_named(record.get("split", "test"), where),
        image=paths[key],
        report=report,
        labels=mentioned_labels(report),
        view=views[key] if views[key] in ("PA", "AP") else "",
        images=paths,
        views=views,
        **context,
    )


def _views(record: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """The more exact of ``ap_pa`` and ``frontal_lateral`` for each image."""
    exact, rough = (_column(record.get(key), count) for key in ("ap_pa", "frontal_lateral"))
    return tuple(view_named(a) or view_named(b) for a, b in zip(exact, rough, strict=True))


def _column(values: object, count: int) -> list[str]:
    if isinstance(values, list) and len(values) == count:
        return [_text(value) for value in values]
    return [""] * count


def _frontal(record: Mapping[str, Any], listed: Sequence[str], views: Sequence[str], where: str) -> int:
    key = _text(record.get("key_image_path"))
    if key:
        if key not in listed:
            raise UsageError(f"{where}: key_image_path must be one of image_path")
        return listed.index(key)
    return frontal_index(views) or 0


def _report(record: Mapping[str, Any]) -> str:
    """Findings and impression; from the sections where there is one, else from the whole report; empty with neither."""
    keys = (("section_findings", "findings"), ("section_impression", "impression"))
    findings, impression = (next((t for k in names if (t := _text(record.get(k)))), "") for names in keys)
    if not findings and not impression:
        findings, impression = map(_text, findings_and_impression(_text(record.get("report"))))
    return headed_report(clean_report(findings), clean_report(impression))


def _context(record: Mapping[str, Any], where: str) -> dict[str, str]:
    context = record.get("context", "")
    if isinstance(context, str):
        pieces = _CONTEXT.split(context)
        context = {name.lower(): text for name, text in zip(pieces[1::2], pieces[2::2], strict=True)}
    if not isinstance(context, dict):
        raise UsageError(f"{where}: context must be a text or an object, not {type(context).__name__}")
    age, gender = _text(context.get("age")).rstrip("."), _text(context.get("gender"))
    return {
        "indication": clean_report(_text(context.get("indication"))),
        "comparison": clean_report(_text(context.get("comparison"))),
        "age": age.removesuffix(".0"),
        "sex": gender[:1].upper() if gender[:1].upper() in ("F", "M", "O") else "",
    }


def _patient(name: str, record: Mapping[str, Any]) -> str:
    if "subject_id" in record:
        return str(record["subject_id"])
    found = _PATIENT.fullmatch(name)
    return found.group(1) if found else name


def _text(value: object) -> str:
    """Text of a field; empty where it holds nothing, NaN among them."""
    text = "" if value is None else str(value).strip()
    return "" if text.lower().rstrip(".") in _NOTHING else text
