"""Reader of ``annotation.json``: {train, val, test: [{id, report, image_path[], …}]} (the R2Gen form)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import label_report
from trrg_train.data.study import Study

SPLITS = ("train", "val", "test")


def read_annotation_json(folder: Path, *, source: str) -> list[Study]:
    """Read all studies of a folder that has an ``annotation.json``.

    Labels come from the record's ``labels`` where it has them (the phantom), else from the sentence labeler, which
    leaves out what the report does not mention or is not sure of.

    Raises:
        UsageError: The file is missing or malformed; names the record.
    """
    path = folder / "annotation.json"
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"no annotation.json in {folder}; `trrg-train phantom --out {folder}` makes one") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is no valid JSON: {error}") from error
    return [
        _study(record, folder, source, split, f"{path}: {split}[{row}]")
        for split in SPLITS
        for row, record in enumerate(records.get(split, []))
    ]


def _study(record: Mapping[str, Any], folder: Path, source: str, split: str, where: str) -> Study:
    try:
        labels = record.get("labels") or mentioned_labels(record["report"])
        return Study(
            study_id=str(record["id"]),
            patient=str(record.get("patient", record["id"])),
            source=source,
            split=split,
            image=folder / record["image_path"][0],
            report=record["report"],
            labels=labels,
            view=record.get("view", ""),
        )
    except (KeyError, IndexError, TypeError) as error:
        raise UsageError(f"{where}: id, report and image_path are needed, {error} is missing") from error


def mentioned_labels(report: str) -> dict[str, bool]:
    """Labels of a report that are certain."""
    return {o: state == "present" for o, state in label_report(report).items() if state != "uncertain"}
