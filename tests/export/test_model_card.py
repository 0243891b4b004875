"""The figures on the model card, as ``trrg-train evaluate`` leaves them on a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("pycocoevalcap")

from trrg_export.model_card import model_card
from trrg_sdk.bundle import Bundle
from trrg_train.evaluation.comparison import EvaluationOptions, evaluate_texts
from trrg_train.evaluation.model import ModelEvaluation, SourceEvaluation
from trrg_train.models.stored import CheckpointMeta

pytestmark = pytest.mark.torch

MINI = Path(__file__).parents[2] / "trrg_sdk" / "bundles" / "mini"
REFERENCES = ["The lungs are clear.", "There is a left pleural effusion.", "The heart is enlarged."]
PREDICTIONS = ["The lungs are clear.", "There is a right pleural effusion.", "The lungs are clear."]


@pytest.fixture
def card() -> str:
    options = EvaluationOptions(meteor=False, resamples=20)
    text = evaluate_texts(PREDICTIONS, REFERENCES, train_reports=REFERENCES[:1] * 3, options=options)
    sources = {"toy": SourceEvaluation({"studies": 3, "clue_auc": {"macro": 0.5}}, text)}
    evaluation = json.loads(
        json.dumps(ModelEvaluation({"split": "test"}, sources).to_plain(short=True), sort_keys=True)
    )
    manifest = dataclasses.replace(Bundle.load(MINI).manifest, evaluation=evaluation)
    return model_card(manifest, CheckpointMeta(stage=2, clues=(), preprocess={}), {})


def test_the_scores_of_the_texts_are_a_table_beside_their_floors(card: str) -> None:
    chapter = card.partition("### toy")[2].partition("## Limits")[0]
    assert "| clue auc: macro | 0.5 |" in chapter
    rows = {line.split(" | ")[0]: line.split(" | ") for line in chapter.splitlines() if line.startswith("| ")}
    assert {len(row) for name, row in rows.items() if "F1" in name or "BLEU" in name} == {7}
    _, value, interval, floor, *_ = rows["| micro F1 (14)"]
    assert (value, floor) == ("0.667", "0.333") and " to " in interval
    assert rows["| METEOR"][1] == "not asked for"
    assert "33.3% of the latter stand word for word in train" in chapter


def test_the_card_stays_short(card: str) -> None:
    chapter = card.partition("### toy")[2].partition("## Limits")[0]
    assert "precision" not in chapter and "facts" not in chapter
    assert len(chapter.splitlines()) < 35
