"""Clinical scores, intervals and floors on numbers small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pycocoevalcap")

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.data.cleaning import comparable
from trrg_train.evaluation.bootstrap import interval, mean_statistic, resample_weights
from trrg_train.evaluation.clinical import (
    FIVE,
    SENTENCE_LABELER,
    asserted,
    best_constant_labels,
    clinical_statistics,
    observation_statistics,
)
from trrg_train.evaluation.floors import constant_report, frequent_sentences, in_train
from trrg_train.evaluation.scores import Weighting

NORMAL = "The lungs are clear. The heart is normal in size."


def matrix(*rows):
    """Bool (K, 14) from the names that are true."""
    return np.array([[name in row for name in OBSERVATIONS] for row in rows])


def at(statistics, name, weights=None):
    size = len(statistics[name].rows)
    return statistics[name].at(np.ones((1, size)) if weights is None else np.array([weights], dtype=float))[0]


SAID = matrix({"Edema", "Cardiomegaly"}, {"Edema"}, {"Fracture"}, set())
TRUTH = matrix({"Edema"}, {"Edema", "Fracture"}, set(), set())


def test_by_hand():
    got = clinical_statistics(SAID, TRUTH)
    # 2 hits, 4 assertions, 3 wanted
    assert at(got, "micro precision (14)") == pytest.approx(2 / 4)
    assert at(got, "micro recall (14)") == pytest.approx(2 / 3)
    assert at(got, "micro F1 (14)") == pytest.approx(4 / 7)
    # wanted are Edema (2 of 2) and Fracture (0 of 1); Cardiomegaly is not wanted and does not count
    assert at(got, "macro F1 (14)") == pytest.approx((1 + 0) / 2)
    assert at(got, "macro recall (14)") == pytest.approx(0.5)
    # studies: 2/3, 2/3, 0, and 0 for two that agree on nothing
    assert at(got, "example F1 (14)") == pytest.approx((2 / 3 + 2 / 3) / 4)
    assert at(got, "example precision (14)") == pytest.approx((1 / 2 + 1) / 4)
    assert at(got, "example recall (14)") == pytest.approx((1 + 1 / 2) / 4)
    # of the five, Fracture is none
    assert at(got, "micro F1 (5)") == pytest.approx(2 * 2 / (3 + 2))
    assert len(got) == 2 * 3 * 3
    assert set(FIVE) < set(OBSERVATIONS)


def test_a_part_equals_its_own_table():
    got, part = clinical_statistics(SAID, TRUTH), clinical_statistics(SAID[1:3], TRUTH[1:3])
    for name in got:
        assert at(got, name, [0, 1, 1, 0]) == pytest.approx(at(part, name)), name


def test_what_cannot_be_scored_is_nan():
    got = clinical_statistics(matrix(set(), set()), matrix(set(), set()))
    assert np.isnan(at(got, "micro F1 (14)")) and np.isnan(at(got, "macro F1 (14)"))
    silent = clinical_statistics(matrix(set()), matrix({"Edema"}))
    assert at(silent, "micro precision (14)") == 0 and at(silent, "micro F1 (14)") == 0
    assert np.isnan(at(observation_statistics(SAID, TRUTH)["Pneumonia"], "F1"))
    assert at(observation_statistics(SAID, TRUTH)["Edema"], "F1") == 1


@pytest.mark.parametrize(("uncertain", "wanted"), [("absent", False), ("present", True)])
def test_a_doubt_counts_as_said(uncertain, wanted):
    row = asserted(["Possible pneumonia. No edema."], SENTENCE_LABELER, uncertain=uncertain)[0]
    assert row[OBSERVATIONS.index("Pneumonia")] == wanted
    assert not row[OBSERVATIONS.index("Edema")]


def test_constant_labels_are_the_best_prefix_of_train():
    train = matrix(*[{"No Finding"}] * 6, *[{"Edema"}] * 3, {"Fracture"})
    test = matrix({"No Finding"}, {"Edema"}, {"Edema"}, {"Fracture"})
    floors = best_constant_labels(train, test)
    # micro: {No Finding} alone 6 of 10 each way on train, F1 .6; with Edema 2*9/(20+10) = .6; the first wins
    assert at(floors, "micro F1 (14)") == pytest.approx(2 * 1 / (4 + 4))
    # macro takes all three: the F1 of an observation asserted everywhere is 2p/(1+p)
    each = [2 * p / (1 + p) for p in (1 / 4, 2 / 4, 1 / 4)]
    assert at(floors, "macro F1 (14)") == pytest.approx(np.mean(each))


def test_patients_come_together():
    weights = resample_weights(["a", "b", "b", "c"], resamples=50, seed=1)
    assert weights.shape == (50, 4)
    assert (weights[:, 1] == weights[:, 2]).all()
    assert (weights[:, 0] + weights[:, 1] + weights[:, 3] == 3).all()
    assert (weights == resample_weights(["a", "b", "b", "c"], resamples=50, seed=1)).all()
    assert (weights != resample_weights(["a", "b", "b", "c"], resamples=50, seed=2)).any()


def test_interval_covers_what_theory_says():
    scores = np.random.default_rng(0).normal(size=400)
    weights = resample_weights([str(row) for row in range(400)], resamples=4000, seed=0)
    low, high = interval(mean_statistic("x", scores).at(weights))
    half = 1.96 * scores.std() / 20
    assert low == pytest.approx(scores.mean() - half, abs=0.012)
    assert high == pytest.approx(scores.mean() + half, abs=0.012)


def test_interval_leaves_out_what_has_no_score():
    assert interval(np.array([1.0, np.nan, 1.0])) == (1.0, 1.0)
    assert np.isnan(interval(np.array([np.nan, np.nan]))).all()


def test_doubled_patients_widen_the_interval():
    scores = np.tile(np.random.default_rng(0).normal(size=100), 4)
    alone, together = (
        Weighting.of(clusters, np.ones(400, dtype=bool), resamples=1000, seed=0)
        for clusters in ([str(row) for row in range(400)], [str(row % 100) for row in range(400)])
    )
    one = mean_statistic("x", scores)
    widths = [w.score(one, one).high - w.score(one, one).low for w in (alone, together)]
    assert widths[1] > 1.7 * widths[0]


def test_the_lead_is_measured_on_the_same_resamples():
    scores = np.random.default_rng(0).normal(size=50)
    weighting = Weighting.of([str(row) for row in range(50)], np.ones(50, dtype=bool), resamples=200, seed=0)
    lead = weighting.score(mean_statistic("x", scores + 0.25), mean_statistic("x", scores))
    assert lead.lead_low == pytest.approx(0.25) and lead.lead_high == pytest.approx(0.25)
    assert lead.high - lead.low > 0.1


def test_one_patient_has_no_interval():
    weighting = Weighting.of(["a", "a"], np.array([True, False]), resamples=100, seed=0)
    score = weighting.score(mean_statistic("x", [1.0, 3.0]), mean_statistic("x", [0.0, 0.0]))
    assert (score.value, score.new, score.low, score.high) == (2.0, 1.0, None, None)


def test_duplicates_ignore_case_and_punctuation_only():
    train = ["Lungs clear, 3 cm mass.", NORMAL]
    found = in_train(["lungs CLEAR 3 cm mass", "lungs clear 4 cm mass", NORMAL], train)
    assert found.tolist() == [True, False, True]
    assert comparable(" A-b.\n1.5 ") == "a b 1 5"


def test_the_constant_report_is_the_best_on_train():
    rare = "There is a large right pneumothorax with complete collapse of the lung."
    floor = constant_report([NORMAL] * 8 + [rare], seed=0)
    assert comparable(floor.text) == comparable(NORMAL)
    assert floor.share == pytest.approx(8 / 9)
    assert floor.text not in repr(floor)


def test_sentences_can_beat_every_whole_report():
    """Every report is unique, and the first twenty are like no other."""
    odd = [" ".join(f"word{number}{letter}" for letter in "abcdefghij") + "." for number in range(20)]
    common = "The lungs are clear without focal consolidation. No effusion is seen on either side."
    train = [*odd, *(f"{common} Film {number}." for number in range(40))]
    assert comparable(frequent_sentences(train)[1]) == comparable(common)
    floor = constant_report(train, seed=0)
    assert (floor.kind, floor.share) == ("sentences", 0)
    assert comparable(floor.text).startswith(comparable(common))


def test_no_train_no_floor():
    with pytest.raises(UsageError, match="at least one"):
        constant_report(["", " . "], seed=0)
