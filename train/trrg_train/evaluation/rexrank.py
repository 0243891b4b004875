"""ReXrank's output file: predictions and references in one, where the references are public.

The form is that of the leaderboard's example submission (github.com/rajpurkarlab/ReXrank, ``example_files/``): one
record a study id, that of the input with ``model_prediction`` added. Studies to write reports for are read by
``trrg_train.data.rexrank``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trrg_sdk.errors import UsageError
from trrg_train.data.cleaning import comparable
from trrg_train.evaluation.pairs import Pairs

PREDICTION = "model_prediction"
SECTIONS = (("Findings", "section_findings"), ("Impression", "section_impression"))


def read_pairs(output_json: Path) -> Pairs:
    """Predictions and references of an output file whose references are public.

    A reference is put together as the leaderboard does it (``example_files/evaluation_script.md``), only that a missing
    section is left out where the leaderboard writes the word None.

    Raises:
        UsageError: A study has no prediction or no reference.
    """
    records = _records(output_json)
    written = {study: str(record[PREDICTION]) for study, record in records.items() if PREDICTION in record}
    references = {study: _reference(record) for study, record in records.items()}
    for study, reference in references.items():
        if study not in written:
            raise UsageError(f"{output_json}: {study} has no {PREDICTION}: this is not an output file of ReXrank")
        if not comparable(reference):
            raise UsageError(f"{output_json}: {study} has neither section_findings nor section_impression")
    if not records:
        raise UsageError(f"{output_json} has no study")
    patients = tuple(str(record.get("subject_id", "")) for record in records.values())
    return Pairs(
        study_ids=tuple(records),
        predictions=tuple(written[study] for study in records),
        references=tuple(references.values()),
        patients=patients if all(patients) else None,
    )


def _records(path: Path) -> dict[str, dict[str, Any]]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"{path} is no file; give ReXrank's JSON file") from error
    except ValueError as error:
        raise UsageError(f"{path} is no valid JSON in UTF-8: {type(error).__name__}") from error
    if not isinstance(records, dict) or not all(isinstance(record, dict) for record in records.values()):
        raise UsageError(f"{path}: an object with a record a study id is expected, as ReXrank's files are")
    return records


def _reference(record: Mapping[str, Any]) -> str:
    # A missing section is NaN in the published files.
    parts = ((name, record.get(key)) for name, key in SECTIONS)
    return " ".join(f"{name}: {text.strip()}" for name, text in parts if isinstance(text, str) and text.strip())
