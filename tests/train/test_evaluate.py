"""Figures of a model's reports, with a writer that is made up."""

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("pycocoevalcap")
pytestmark = pytest.mark.torch

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS
from trrg_train import evaluate as evaluate_module
from trrg_train.cli import main
from trrg_train.config import SourceConfig
from trrg_train.data.sides import asserted_sides
from trrg_train.data.study import Study
from trrg_train.evaluate import Scope, Training, clue_auc, evaluate_source, laterality, training_of
from trrg_train.evaluation.comparison import EvaluationOptions, evaluate_texts
from trrg_train.writers import BundleWriter, Written

LEFT = "FINDINGS: There is a small left pleural effusion. There is no right pneumothorax. IMPRESSION: Left effusion."
RIGHT = "FINDINGS: There is a right pleural effusion. IMPRESSION: Right pleural effusion."
BOTH = "FINDINGS: There are bilateral pleural effusions. IMPRESSION: Pleural effusions."
NO_SIDE = "FINDINGS: There is a pleural effusion. IMPRESSION: Pleural effusion."
NONE = "FINDINGS: There is no pleural effusion. IMPRESSION: No acute cardiopulmonary abnormality."


def test_sides_are_those_of_sentences_that_assert():
    assert asserted_sides(LEFT) == {"Pleural Effusion": {"left"}}
    assert asserted_sides(BOTH) == {"Pleural Effusion": {"left", "right"}}
    assert asserted_sides(NO_SIDE) == {"Pleural Effusion": frozenset()}
    assert asserted_sides(NONE) == {}
    cleft = "There is a bright, well-defined nodule at the cleft of the minor fissure."
    assert asserted_sides(cleft) == {"Lung Lesion": frozenset()}


def test_laterality_counts_what_both_texts_assert_on_one_side():
    figures = laterality([LEFT, RIGHT, BOTH, NO_SIDE, NONE, LEFT], [LEFT, LEFT, LEFT, LEFT, LEFT, BOTH])
    assert figures == {"findings": 4, "same": 0.25, "other": 0.5, "none": 0.25}
    assert laterality([NONE], [NONE]) == {"findings": 0, "same": None, "other": None, "none": None}


def test_among_studies_with_findings_a_score_that_only_tells_sick_from_well_is_chance():
    labels = np.zeros((8, len(OBSERVATIONS)))
    normal, effusion = OBSERVATIONS.index("No Finding"), OBSERVATIONS.index("Pleural Effusion")
    labels[:4, normal], labels[6:, effusion] = 1, 1
    sick = np.repeat(1.0 - labels[:, normal, None], len(OBSERVATIONS), axis=1)
    figures = clue_auc(sick, labels, np.array(["AP", "PA"] * 4))["each"]["Pleural Effusion"]
    assert figures["positives"] == 2
    assert figures["auc"] == pytest.approx(5 / 6, abs=1e-4)  # rounded
    assert figures["within_abnormal"] == 0.5


FAST = EvaluationOptions(meteor=False, resamples=20)


class FakeWriter:
    """Writes an effusion into every report and refuses studies whose id says so."""

    def write(self, studies, *, clue_scores=None):
        rng = np.random.default_rng(0)
        reports = [Written(LEFT, rng.random(len(OBSERVATIONS))) for _ in studies]
        return [None if "refused" in s.study_id else report for s, report in zip(studies, reports, strict=True)]


@pytest.fixture
def evaluated(toy_run, tmp_path, monkeypatch, capsys):
    """The output of ``evaluate`` on the toy pictures' test split."""
    monkeypatch.setattr(evaluate_module, "open_writer", lambda model, cache: FakeWriter())

    def run(*options):
        given = ["evaluate", "model", str(toy_run(tmp_path, epochs=1)), "--resamples", "20", *options]
        assert main(given) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


def studies_of(tmp_path, source="toy", **reports):
    names = ["train", "val", "test"]
    rows = [(split, text) for split in names for text in reports.get(split, ())]
    return [
        Study(f"{source}{i}", f"p{i}", source, split, tmp_path / f"{i}.png", text, {"Pleural Effusion": i % 2 == 0})
        for i, (split, text) in enumerate(rows)
    ]


def test_a_models_texts_are_scored_by_the_one_path(tmp_path):
    studies = studies_of(tmp_path, train=[LEFT, LEFT, NONE], test=[RIGHT, LEFT, BOTH])
    test, train = studies[3:], [LEFT, LEFT, NONE]
    got = evaluate_source(FakeWriter(), test, training=Training(tuple(train)), options=FAST).text
    patients = [study.patient for study in test]
    wanted = evaluate_texts([LEFT] * 3, [RIGHT, LEFT, BOTH], train_reports=train, patients=patients, options=FAST)
    assert got.to_plain() == wanted.to_plain()
    assert got.facts.in_train == pytest.approx(1 / 3)


def test_refused_studies_and_those_without_a_report_have_no_text_score(tmp_path):
    test = studies_of(tmp_path, test=[RIGHT, LEFT, " . ", BOTH])
    test[1] = replace(test[1], study_id="refused")
    result = evaluate_source(FakeWriter(), test, training=Training((LEFT,)), options=FAST)
    assert (result.figures["studies"], result.figures["refused"], result.text.facts.studies) == (4, 1, 2)
    assert evaluate_source(FakeWriter(), test[2:3], training=Training((LEFT,)), options=FAST).text is None
    assert evaluate_source(FakeWriter(), test, training=None, options=FAST).text is None
    with pytest.raises(UsageError, match="all 1 studies of toy are refused"):
        evaluate_source(FakeWriter(), test[1:2], training=None, options=FAST)


def test_floors_come_from_the_source_and_known_references_from_all(tmp_path):
    studies = studies_of(tmp_path, train=[LEFT, ""], test=[RIGHT]) + studies_of(tmp_path, "b", train=[NONE], val=[BOTH])
    sources = {name: SourceConfig(name, "annotation", tmp_path) for name in ("toy", "b", "c")}
    assert training_of(sources["toy"], studies, Scope()) == Training((LEFT,), (NONE,))
    assert training_of(sources["c"], studies, Scope()) == Training((LEFT, NONE))
    assert training_of(sources["c"], studies, Scope(train_reports=[BOTH])) == Training((BOTH,))
    with pytest.raises(UsageError, match="no source has a train report"):
        training_of(sources["c"], studies[2:3], Scope())
    seen = evaluate_texts([LEFT], [NONE], train_reports=[LEFT], also_seen=[NONE], options=FAST).facts
    assert (seen.in_train, seen.train_reports, seen.floor_reports, seen.floor_share) == (1, 2, 1, 1)


def test_the_command_prints_every_score_beside_its_floor(evaluated):
    shown = evaluated("--no-meteor")
    for line in ("## toy", "| studies | 20 |", "| Pleural Effusion | 10 |", "| METEOR | not asked for |", "| BLEU-4 |"):
        assert line in shown, line
    assert "100.0% of the references stand word for word among 48 train reports" in shown
    assert "| micro F1 (14) |" in shown and "tokenizer: plain" in shown


def test_options_of_the_scores_reach_a_model(evaluated, tmp_path):
    (tmp_path / "train.csv").write_text("report\nA nodule.\n", encoding="utf-8")
    options = ("--no-meteor", "--json", "--uncertain", "present", "--split", "val", "--limit", "6")
    result = json.loads(evaluated(*options, "--train", str(tmp_path / "train.csv")))
    assert (result["split"], result["toy"]["studies"]) == ("val", 6)
    text = result["toy"]["text"]
    assert text["facts"]["train_reports"] == 1 and text["facts"]["in_train"] == 0
    assert text["choices"]["uncertain"] == "counts as present" and "20 resamples" in text["choices"]["interval"]
    assert len(text["observations"]) == len(OBSERVATIONS)


def test_stored_figures_hold_the_texts_without_single_observations(evaluated, tmp_path):
    (tmp_path / "meta.json").write_text("{}", encoding="utf-8")
    evaluated("--no-meteor", "--store", str(tmp_path))
    text = json.loads((tmp_path / "meta.json").read_text())["evaluation"]["toy"]["text"]
    assert set(text) == {"facts", "choices", "text", "clinical"}


def test_texts_that_the_grammar_composed_are_no_references(evaluated, toy_run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_module, "COMPOSED_REPORTS", ("annotation",))
    assert "text" not in json.loads(evaluated("--json"))["toy"]


def test_a_split_without_a_study_is_refused(toy_run, tmp_path, capsys):
    config = toy_run(tmp_path, epochs=1)
    assert main(["evaluate", "model", str(config), "--limit", "0"]) == 2
    assert "none of the sources has a study of the split test" in capsys.readouterr().err


def test_ptb_without_java_fails_before_a_report_is_written(toy_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("trrg_train.evaluation.meteor.shutil.which", lambda _: None)
    assert main(["evaluate", "no model", str(toy_run(tmp_path, epochs=1)), "--tokenizer", "ptb"]) == 2
    assert "tokenizer ptb needs Java" in capsys.readouterr().err


def test_the_frontal_image_is_the_one_that_a_bundle_reads(tmp_path):
    views = {"images": (tmp_path / "lateral.dcm", tmp_path / "pa.dcm"), "views": ("LATERAL", "PA")}
    study = Study("s", "p", "toy", "test", tmp_path / "pa.dcm", NONE, {}, view="PA", **views)
    read = []
    writer = BundleWriter.__new__(BundleWriter)
    writer.reporter = type(
        "Reporter", (), {"report": lambda self, source, clue_scores: read.append(source) or REPORT}
    )()
    assert writer.write([study])[0].text == NONE
    assert read == [tmp_path / "pa.dcm"]


REPORT = type("Report", (), {"text": NONE, "clues": ()})
