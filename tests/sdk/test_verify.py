from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from tests.sdk.handmade_reports import score
from trrg_sdk.report import ClueScores, HeatPeak, State, Verdict
from trrg_sdk.verify import MARGIN, distance, judge, omissions


def at(distance_logits: float, threshold: float = 0.5) -> float:
    """The probability that lies this far from the threshold."""
    logit = math.log(threshold / (1 - threshold)) + distance_logits
    return 1 / (1 + math.exp(-logit))


CLEARLY_PRESENT, JUST_PRESENT, JUST_ABSENT, CLEARLY_ABSENT = 1.5, 0.5, -0.5, -1.5


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
@pytest.mark.parametrize(
    ("state", "gap", "verdict"),
    [
        ("present", CLEARLY_PRESENT, "supported"),
        ("present", JUST_PRESENT, "supported"),
        ("present", JUST_ABSENT, "unsupported"),
        ("present", CLEARLY_ABSENT, "contradicted"),
        ("absent", CLEARLY_PRESENT, "contradicted"),
        ("absent", JUST_PRESENT, "unsupported"),
        ("absent", JUST_ABSENT, "supported"),
        ("absent", CLEARLY_ABSENT, "supported"),
        ("uncertain", CLEARLY_PRESENT, "supported"),
        ("uncertain", JUST_PRESENT, "supported"),
        ("uncertain", JUST_ABSENT, "supported"),
        ("uncertain", CLEARLY_ABSENT, "unsupported"),
    ],
)
def test_the_table_of_the_docstring(state: State, gap: float, verdict: Verdict, threshold: float) -> None:
    clues = ClueScores((score("Edema", at(gap, threshold), threshold=threshold),))
    judgement = judge({"Edema": state}, clues, peaks={})
    assert judgement.verdict == verdict
    assert [item.clue for item in judgement.evidence] == ["Edema"]


def test_exactly_at_the_threshold_counts_as_present() -> None:
    clues = ClueScores((score("Edema", 0.37, threshold=0.37),))
    assert distance(clues["Edema"]) == 0
    assert judge({"Edema": "present"}, clues, peaks={}).verdict == "supported"
    assert judge({"Edema": "absent"}, clues, peaks={}).verdict == "unsupported"


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_certainty_is_no_infinity(probability: float) -> None:
    clues = ClueScores((score("Edema", probability),))
    assert math.isfinite(distance(clues["Edema"]))
    expected = "supported" if probability else "contradicted"
    assert judge({"Edema": "present"}, clues, peaks={}).verdict == expected


@pytest.mark.parametrize(
    ("labels", "verdict"),
    [
        ({"Edema": "present", "Fracture": "absent"}, "supported"),
        ({"Edema": "present", "Fracture": "present"}, "contradicted"),
        ({"Edema": "present", "Pneumonia": "present"}, "unsupported"),
        ({"Pneumonia": "present", "Fracture": "present"}, "contradicted"),
        ({"Edema": "present", "Unheard Of": "present"}, "supported"),
        ({"Unheard Of": "present"}, "not_checkable"),
        ({}, "not_checkable"),
    ],
)
def test_the_worst_verdict_wins(labels: Mapping[str, State], verdict: Verdict) -> None:
    clues = ClueScores((score("Edema", 0.95), score("Pneumonia", 0.45), score("Fracture", 0.02)))
    assert judge(labels, clues, peaks={}).verdict == verdict


def test_a_normal_sentence_is_contradicted_by_a_clear_disease() -> None:
    clues = ClueScores((score("Edema", 0.95), score("Fracture", 0.1), score("No Finding", 0.9)))
    judgement = judge({"No Finding": "present"}, clues, peaks={})
    assert judgement.verdict == "contradicted"
    assert [item.clue for item in judgement.evidence] == ["Edema", "No Finding"]


@pytest.mark.parametrize(("name", "probability"), [("Support Devices", 0.99), ("Edema", at(MARGIN / 2))])
def test_a_normal_sentence_bears_devices_and_doubt(name: str, probability: float) -> None:
    clues = ClueScores((score(name, probability), score("No Finding", 0.9)))
    assert judge({"No Finding": "present"}, clues, peaks={}).verdict == "supported"


def test_forced_scores_are_judged_and_marked_and_have_no_place_in_the_image() -> None:
    peak = HeatPeak(1, 2, 6, 6, 0.9)
    clues = ClueScores((score("Edema", 0.95, forced=True), score("Pneumonia", 0.9)))
    judgement = judge({"Edema": "absent", "Pneumonia": "present"}, clues, peaks={"Edema": peak, "Pneumonia": peak})
    assert judgement.verdict == "contradicted"
    forced, perceived = judgement.evidence
    assert forced.forced
    assert forced.heat_peak is None
    assert not perceived.forced
    assert perceived.heat_peak == peak


def test_omissions_are_what_is_present_and_not_asserted() -> None:
    clues = ClueScores(
        (
            score("Edema", 0.9),
            score("Pneumonia", 0.8),
            score("Fracture", 0.7),
            score("Atelectasis", 0.3),
            score("No Finding", 0.9),
            score("Hiatal Hernia", 0.6),
        )
    )
    said: list[Mapping[str, State]] = [{"Edema": "present", "Fracture": "absent"}, {"Pneumonia": "uncertain"}]
    assert [item.clue for item in omissions(said, clues, peaks={})] == ["Fracture", "Hiatal Hernia"]


@pytest.mark.parametrize(
    ("special", "omitted"), [("Consolidation", []), ("Pleural Effusion", ["Lung Opacity"]), ("", ["Lung Opacity"])]
)
def test_a_special_word_covers_the_general_one(special: str, omitted: list[str]) -> None:
    clues = ClueScores((score("Lung Opacity", 0.9),))
    assert [item.clue for item in omissions([{special: "present"}], clues, peaks={})] == omitted
    assert [item.clue for item in omissions([{special: "absent"}], clues, peaks={})] == ["Lung Opacity"]
