"""ReXrank's output file: every record of its input, unchanged, with ``model_prediction`` added.

The form is that of the leaderboard's test files and example submission (github.com/rajpurkarlab/ReXrank, ``data/`` and
``example_files/``): one object with a record a study id. Where the references are public, predictions and references
are in one file. Studies to write reports for are read by ``trrg_train.data.rexrank``.
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


def write_predictions(
    records: Mapping[str, Mapping[str, Any]], output_json: Path, predictions: Mapping[str, str]
) -> None:
    """Write the output file of an input file, aside and renamed: nobody finds half of it.

    Args:
        records: Of the input file, see ``read_records``.
        output_json: ReXrank's ``--save_json_file``; replaced as a whole.
        predictions: Study id to report, one for every record.

    Raises:
        UsageError: The output cannot be written.
    """
    written = {study: {**record, PREDICTION: predictions[study]} for study, record in records.items()}
    aside = output_json.with_name(f"{output_json.name}.writing")
    try:
        aside.write_text(json.dumps(written, indent=4), encoding="utf-8")
        aside.replace(output_json)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UsageError(f"cannot write {output_json}: {error.strerror}") from error


def read_pairs(output_json: Path) -> Pairs:
    """Predictions and references of an output file whose references are public.

    A reference is put together as the leaderboard does it (``example_files/evaluation_script.md``), only that a missing
    section is left out where the leaderboard writes the word None.

    Raises:
        UsageError: A study has no prediction or no reference.
    """
    records = read_records(output_json)
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


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """Study id to record of an input or an output file, as it stands there.

    Raises:
        UsageError: It is no object of records.
    """
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
