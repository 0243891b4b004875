"""The whole evaluation on made-up reports."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

pytest.importorskip("pycocoevalcap")

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.data.cleaning import clean_report_iu_xray
from trrg_train.evaluation import comparison, meteor
from trrg_train.evaluation.clinical import Labeler
from trrg_train.evaluation.comparison import EvaluationOptions, evaluate_texts
from trrg_train.evaluation.text import TEXT_SCORES

TRAIN = [
    *["The heart is normal in size. The lungs are clear. No pleural effusion or pneumothorax."] * 4,
    "The heart is enlarged. There is a small left pleural effusion.",
    "Mild pulmonary edema. The heart is enlarged.",
]
REFERENCES = [
    "The heart is normal in size. The lungs are clear! No pleural effusion or pneumothorax.",
    "There is a moderate right pleural effusion. The heart is enlarged.",
    "The lungs are hyperexpanded and clear. No acute osseous abnormality is seen.",
    "Mild pulmonary edema is seen, and the heart is enlarged.",
]
PREDICTIONS = [
    "The heart is normal in size. The lungs are clear. No pneumothorax.",
    "There is a small right pleural effusion. The heart is enlarged.",
    "The lungs are clear. No acute abnormality.",
    "the lungs are clear, no acute abnormality",
]
FAST = EvaluationOptions(meteor=False, resamples=50)


@pytest.fixture(scope="module")
def evaluation():
    return evaluate_texts(PREDICTIONS, REFERENCES, train_reports=TRAIN, patients=["a", "b", "c", "c"], options=FAST)


def test_every_score_stands_beside_its_floor_and_its_interval(evaluation):
    for score in (*evaluation.text, *evaluation.clinical):
        if not score.note:
            values = (score.value, score.low, score.high, score.floor, score.lead_low, score.new, score.new_floor)
            assert None not in values, score.name
            assert score.low <= score.value <= score.high, score.name
    assert all(score.label_floor is not None for score in evaluation.clinical)


def test_facts(evaluation):
    facts = evaluation.facts
    assert (facts.studies, facts.patients, facts.distinct_predictions, facts.empty_predictions) == (4, 3, 3, 0)
    assert facts.most_frequent_prediction == 0.5
    assert facts.in_train == 0.25
    assert facts.floor_share == pytest.approx(4 / 6)


def test_the_new_part_is_scored_alone(evaluation):
    part = evaluate_texts(PREDICTIONS[1:], REFERENCES[1:], train_reports=TRAIN, options=FAST)
    for name in ("BLEU-4", "ROUGE-L", "micro F1 (14)", "macro F1 (5)"):
        assert evaluation.score(name).new == pytest.approx(part.score(name).value), name
        assert evaluation.score(name).new_floor == pytest.approx(part.score(name).floor), name


def test_a_writer_of_the_floor_has_no_lead():
    text = comparison.constant_report(TRAIN, seed=7).text
    got = evaluate_texts([text] * 4, REFERENCES, train_reports=TRAIN, options=FAST)
    assert got.facts.distinct_predictions == 1
    for score in (*got.text, *got.clinical):
        if not score.note:
            assert score.value == score.floor and score.lead_low == score.lead_high == 0, score.name


def test_text_and_clinical_scores_are_shown_together(evaluation):
    loaded = json.loads(evaluation.to_json())
    shown = evaluation.to_markdown()
    for name in (*TEXT_SCORES, "micro F1 (14)", "macro F1 (5)", "example F1 (14)"):
        assert f"| {name} |" in shown
        assert any(score["name"] == name for score in (*loaded["text"], *loaded["clinical"]))
    assert [row["name"] for row in loaded["observations"]] == list(OBSERVATIONS)
    assert "| METEOR | not asked for |" in shown
    assert "tokenizer: plain" in shown and "uncertain: counts as absent" in shown
    cells = {line.count("|") for line in shown.splitlines() if line.startswith("|") and "score" in shown}
    assert cells == {9, 11}


def test_no_report_is_shown(evaluation):
    for text in (*TRAIN, *REFERENCES, *PREDICTIONS):
        assert text not in evaluation.to_markdown() + evaluation.to_json() + repr(evaluation)


def test_support_is_counted(evaluation):
    rows = {row.name: row for row in evaluation.observations}
    assert (rows["Cardiomegaly"].support, rows["Cardiomegaly"].asserted) == (2, 1)
    assert rows["Cardiomegaly"].recall.value == 0.5 and rows["Cardiomegaly"].precision.value == 1
    assert rows["Pneumonia"].f1.value is None


def test_without_java_meteor_says_so(monkeypatch):
    monkeypatch.setattr(meteor.shutil, "which", lambda _: None)
    got = evaluate_texts(PREDICTIONS, REFERENCES, train_reports=TRAIN, options=EvaluationOptions(resamples=10))
    assert got.score("METEOR").value is None
    assert "| METEOR | needs Java |" in got.to_markdown()


def test_another_labeler_is_used_and_named():
    edema = Labeler("all edema", lambda texts: [{"Edema": "present"}] * len(texts))
    options = EvaluationOptions(meteor=False, resamples=10, labeler=edema)
    got = evaluate_texts(PREDICTIONS, REFERENCES, train_reports=TRAIN, options=options)
    assert got.score("micro F1 (14)").value == 1 and got.score("micro F1 (14)").label_floor == 1
    assert "labeler: all edema" in got.to_markdown()


def test_all_in_train_leaves_no_new_score():
    got = evaluate_texts(PREDICTIONS[:2], TRAIN[3:5], train_reports=TRAIN, options=FAST)
    assert got.facts.in_train == 1
    assert got.score("BLEU-4").new is None and got.score("micro F1 (14)").new is None


def test_on_real_reports_another_patients_report_is_worse_than_the_constant_one(shared_data):
    """Why a text score must never stand alone: real reports, each of another patient, lose to one text for all."""
    with gzip.open(shared_data / "reports" / "iu_reports.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    parts = {
        split: [clean_report_iu_xray(r["findings"]) for r in records if r["r2gen_split"] == split]
        for split in ("train", "val")
    }
    drawn = np.random.default_rng(0).integers(len(parts["train"]), size=len(parts["val"]))
    predictions = [parts["train"][row] for row in drawn]
    got = evaluate_texts(predictions, parts["val"], train_reports=parts["train"], options=FAST)
    for name in ("BLEU-4", "ROUGE-L", "micro F1 (14)"):
        assert got.score(name).lead_high < 0, name
    assert got.score("BLEU-4").floor > 0.15
    assert 0.2 < got.facts.in_train < 0.5
    assert got.score("BLEU-4").new < got.score("BLEU-4").value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], ["a", "b"], None), "1 predictions for 2 references"),
        (([], [], None), "0 predictions for 0"),
        ((["a", "b"], ["a", "b"], ["p"]), "1 patients for 2"),
        ((["a", "b"], ["a", " . "], None), "1 references have no word, first number 1"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    predictions, references, patients = arguments
    with pytest.raises(UsageError, match=message):
        evaluate_texts(predictions, references, train_reports=TRAIN, patients=patients, options=FAST)


@pytest.mark.parametrize("choice", [{"tokenizer": "bpe"}, {"uncertain": "maybe"}, {"resamples": 1}])
def test_unknown_choices_are_refused(choice):
    with pytest.raises(UsageError):
        EvaluationOptions(**choice)
