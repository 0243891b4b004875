"""ReXrank's output file: every record of its input, unchanged, with ``model_prediction`` added.

The form is that of the leaderboard's test files and example submission (github.com/rajpurkarlab/ReXrank, ``data/`` and
``example_files/``): one object with a record a study id. Studies to write reports for are read by
``trrg_train.data.rexrank``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trrg_sdk.errors import UsageError
from trrg_train.evaluation.floors import normalise
from trrg_train.evaluation.pairs import Pairs

PREDICTION = "model_prediction"
SECTIONS = (("Findings", "section_findings"), ("Impression", "section_impression"))


def write_predictions(input_json: Path, output_json: Path, predictions: Mapping[str, str]) -> None:
    """Write the output file of an input file.

    The output is replaced as a whole, so that a killed run leaves the old one.

    Args:
        input_json: ReXrank's ``--input_json_file``.
        output_json: ReXrank's ``--save_json_file``.
        predictions: Study id to report, one for every study of the input.

    Raises:
        UsageError: The input is no such file, or the ids differ.
    """
    records = _records(input_json)
    for ids, problem in (
        ([study for study in records if study not in predictions], "have no prediction"),
        ([study for study in predictions if study not in records], "are predicted and not in it"),
    ):
        if ids:
            raise UsageError(f"{input_json}: {len(ids)} studies {problem}, first {ids[0]}; every study is needed once")
    written = {study: {**record, PREDICTION: predictions[study]} for study, record in records.items()}
    part = output_json.with_name(f"{output_json.name}.part")
    part.write_text(json.dumps(written, indent=4), encoding="utf-8")
    os.replace(part, output_json)


def read_predicted(output_json: Path) -> dict[str, str]:
    """Study id to report of an output file, those studies only that have one, so that a run can go on.

    Raises:
        UsageError: The file is no such file.
    """
    records = _records(output_json)
    return {study: str(record[PREDICTION]) for study, record in records.items() if PREDICTION in record}


def read_pairs(output_json: Path) -> Pairs:
    """Predictions and references of an output file whose references are public.

    A reference is put together as the leaderboard does it (``example_files/evaluation_script.md``), only that a missing
    section is left out where the leaderboard writes the word None.

    Raises:
        UsageError: A study has no prediction or no reference.
    """
    records, written = _records(output_json), read_predicted(output_json)
    references = {study: _reference(record) for study, record in records.items()}
    for study, reference in references.items():
        if study not in written:
            raise UsageError(f"{output_json}: {study} has no {PREDICTION}: this is not an output file of ReXrank")
        if not normalise(reference):
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
