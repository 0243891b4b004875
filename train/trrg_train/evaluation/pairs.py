"""Written reports beside their references, from two csv files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trrg_sdk.errors import UsageError
from trrg_train.data.cleaning import comparable
from trrg_train.data.csv_rows import csv_rows

SHOWN = 5


@dataclass(frozen=True)
class Pairs:
    """K studies.

    Attributes:
        study_ids: In the order of the references.
        predictions: Written reports; an empty one is allowed, and counted.
        references: Each has a word.
        patients: One a study; None where they are not known.
    """

    study_ids: tuple[str, ...]
    predictions: tuple[str, ...] = field(repr=False)
    references: tuple[str, ...] = field(repr=False)
    patients: tuple[str, ...] | None = field(repr=False)


def read_predictions(predictions: Path, references: Path, *, split: str | None = None) -> Pairs:
    """Join written reports and references by ``study_id``.

    Args:
        predictions: csv with ``study_id,report``.
        references: csv with ``study_id,report`` and, if known, ``patient`` and ``split``.
        split: Take only the references of this split, and the predictions that belong to them; None takes all.

    Raises:
        UsageError: A file, a column or a text is missing, an id occurs twice, or the ids of both files differ.
    """
    wanted: dict[str, Mapping[str, str]] = {}
    others: set[str] = set()
    for row, where in csv_rows(references, columns=("study_id", "report", *(("split",) if split else ()))):
        _once(row["study_id"], wanted.keys() | others, where)
        if split and row["split"] != split:
            others.add(row["study_id"])
            continue
        if not comparable(row["report"]):
            raise UsageError(f"{where}: a reference without a word cannot be scored against; give a report")
        wanted[row["study_id"]] = row
    written: dict[str, str] = {}
    for row, where in csv_rows(predictions, columns=("study_id", "report")):
        _once(row["study_id"], written.keys(), where)
        if row["study_id"] not in others:
            written[row["study_id"]] = row["report"]
    if not wanted:
        raise UsageError(f"{references} has no reference{f' of split {split!r}' if split else ''}")
    _same_ids(written, wanted, predictions, references)
    return Pairs(
        study_ids=tuple(wanted),
        predictions=tuple(written[study] for study in wanted),
        references=tuple(row["report"] for row in wanted.values()),
        patients=_patients(wanted.values(), references),
    )


def read_train_reports(path: Path) -> list[str]:
    """Read the reports of the train part.

    Args:
        path: csv with ``report``; where it has a ``split``, only its rows of ``train`` are taken.

    Raises:
        UsageError: The file or its column is missing, or no row is left.
    """
    rows = [row for row, _ in csv_rows(path, columns=("report",))]
    reports = [row["report"] for row in rows if row.get("split", "train") == "train"]
    if not reports:
        raise UsageError(f"{path} has no train report (rows: {len(rows)}); its split column must say train")
    return reports


def _once(study_id: str, known: Iterable[str], where: str) -> None:
    if not study_id:
        raise UsageError(f"{where}: study_id is empty")
    if study_id in known:
        raise UsageError(f"{where}: study_id {study_id!r} occurs twice; keep one row a study")


def _same_ids(written: Mapping[str, object], wanted: Mapping[str, object], predictions: Path, references: Path) -> None:
    for some, others, here, there in (
        (wanted, written, references, predictions),
        (written, wanted, predictions, references),
    ):
        lone = [study for study in some if study not in others]
        if lone:
            first = ", ".join(lone[:SHOWN])
            message = f"{len(lone)} studies of {here} have no row in {there}, first {first}"
            raise UsageError(f"{message}; every study must be in both")


def _patients(rows: Iterable[Mapping[str, str]], references: Path) -> tuple[str, ...] | None:
    patients = tuple(row.get("patient", "") for row in rows)
    known = sum(bool(patient) for patient in patients)
    if 0 < known < len(patients):
        raise UsageError(f"{references}: {known} of {len(patients)} rows name a patient; name all or none")
    return patients if known else None
