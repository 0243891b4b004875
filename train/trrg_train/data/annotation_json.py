"""Reader of ``annotation.json``: {train, val, test: [{id, report, image_path[], …}]} (the R2Gen form).

Three kinds of it are read alike: IU X-ray (two image paths a record, no patient: the CXR number of the id is the
patient's only report), MIMIC-CXR (``subject_id``, ``study_id``, one image a record) and our phantom (``patient``,
``labels``, ``view``). Fields: https://github.com/cuhksz-nlp/R2Gen, modules/datasets.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS, label_report
from trrg_train.data.study import SPLITS, Study

IMAGES = "images"

_IU_ID = re.compile(r"(CXR\d+)_(?:\d+_)?IM-[\d-]+")


def read_annotation_json(folder: Path, *, source: str) -> list[Study]:
    """Read all studies of a folder that has an ``annotation.json``.

    Labels come from the record's ``labels`` where it has them (the phantom), else from the sentence labeler, which
    leaves out what the report does not mention or is not sure of.

    An image path is relative to the folder where it starts with ``images/`` (the phantom) or the folder has no
    ``images``; else it is relative to ``images/`` (R2Gen). R2Gen's IU form does not say which of its two images is
    the frontal one: the first is taken. ReXrank's JSON of the same studies does say it.

    Args:
        folder: Holds ``annotation.json``.
        source: Name of the data set.

    Raises:
        UsageError: The file is missing or malformed; names the record.
    """
    path = folder / "annotation.json"
    records = _load(path)
    base = folder / IMAGES if (folder / IMAGES).is_dir() else folder
    return [
        _study(record, {"": base, IMAGES: folder}, source, split, f"{path}: {split}[{row}]")
        for split in SPLITS
        for row, record in enumerate(records.get(split, []))
    ]


def mentioned_labels(report: str) -> dict[str, bool]:
    """Labels of a report that are certain."""
    return {o: state == "present" for o, state in label_report(report).items() if state != "uncertain"}


def _load(path: Path) -> Mapping[str, Any]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        folder = path.parent
        raise UsageError(f"no annotation.json in {folder}; `trrg-train phantom --out {folder}` makes one") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(records, dict) or not all(isinstance(records.get(split, []), list) for split in SPLITS):
        raise UsageError(f"{path}: an object with lists under {', '.join(SPLITS)} was expected")
    return records


def _study(record: Any, bases: Mapping[str, Path], source: str, split: str, where: str) -> Study:
    """One record; ``bases`` gives the folder of paths that start with a name, "" that of all others."""
    try:
        report, names = record["report"], record["image_path"]
        if not (isinstance(report, str) and isinstance(names, list) and names):
            raise UsageError(f"{where}: report must be a text and image_path a list of at least one path")
        images = tuple(_image(name, bases) for name in names)
        return Study(
            study_id=str(record["id"]),
            patient=_patient(record),
            source=source,
            split=split,
            image=images[0],
            report=report,
            labels=_labels(record, where) or mentioned_labels(report),
            view=record.get("view", ""),
            images=images,
        )
    except KeyError as error:
        raise UsageError(f"{where}: id, report and image_path are needed, {error} is missing") from error
    except (TypeError, AttributeError) as error:
        raise UsageError(f"{where}: an object with id, report and image_path was expected") from error


def _image(name: str, bases: Mapping[str, Path]) -> Path:
    first = Path(name).parts[0] if name else ""
    return bases.get(first, bases[""]) / name


def _patient(record: Mapping[str, Any]) -> str:
    """The patient: named (phantom), numbered (MIMIC-CXR), in the id (IU X-ray), else each record is one of its own."""
    for key in ("patient", "subject_id"):
        if key in record:
            return str(record[key])
    found = _IU_ID.fullmatch(str(record["id"]))
    return found.group(1) if found else str(record["id"])


def _labels(record: Mapping[str, Any], where: str) -> Mapping[str, bool]:
    labels: Mapping[str, bool] = record.get("labels") or {}
    unknown = sorted(set(labels) - set(OBSERVATIONS))
    if unknown:
        raise UsageError(f"{where}: unknown labels {', '.join(unknown)}; known: {', '.join(OBSERVATIONS)}")
    return labels
