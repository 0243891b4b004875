from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from trrg_sdk.labeler import OBSERVATIONS, label_report, label_sentence, split_sentences
from trrg_train.data.finding import KINDS, Finding, Severity, Side, study_labels
from trrg_train.data.grammar import compose_report, prompts
from trrg_train.data.phrases import WORDINGS

SIDES: tuple[Side, ...] = ("left", "right", "bilateral", "")
PLACES = ("upper", "mid", "lower", "base", "apex", "")
SEVERITIES: tuple[Severity, ...] = ("small", "moderate", "large", "")
DISEASES = [kind for kind, observations in KINDS.items() if observations != ("Support Devices",)]
NIH_UNKNOWN = frozenset({"Support Devices", "Fracture", "Enlarged Cardiomediastinum"})


def random_findings(rng: np.random.Generator) -> list[Finding]:
    def one_of(options: Sequence[Any]) -> Any:
        return options[rng.integers(len(options))]

    return [
        Finding(one_of(list(KINDS)), one_of(SIDES), one_of(PLACES), one_of(SEVERITIES)) for _ in range(rng.integers(6))
    ]


def observations(findings: list[Finding]) -> frozenset[str]:
    return frozenset(observation for finding in findings for observation in KINDS[finding.kind])


def write(*findings: Finding, seed: int = 0, view: str = "PA", unknown: frozenset[str] = frozenset()) -> str:
    return compose_report(findings, rng=np.random.default_rng(seed), view=view, unknown=unknown)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_the_text_says_what_the_findings_say_and_nothing_else(share: float) -> None:
    rng = np.random.default_rng(20 + int(10 * share))
    for _ in range(1200):
        findings = random_findings(rng)
        unknown = frozenset(name for name in OBSERVATIONS[:-1] if rng.random() < share)
        text = compose_report(findings, rng=rng, view=str(rng.choice(["PA", "AP", ""])), unknown=unknown)
        said = label_report(text)
        truth = {name for name, present in study_labels(findings).items() if present}
        assert {name for name, state in said.items() if state == "present"} == truth, text
        assert "uncertain" not in said.values(), text
        assert not set(said) & (unknown - observations(findings)), text


def test_what_is_known_to_be_absent_is_mostly_denied() -> None:
    said = [label_report(write(seed=seed)) for seed in range(200)]
    for name in ("Consolidation", "Lung Opacity", "Pleural Effusion", "Pneumothorax", "Cardiomegaly", "Fracture"):
        assert all(labels[name] == "absent" for labels in said), name
    for name in OBSERVATIONS[:-1]:
        if name != "Support Devices":
            assert any(labels.get(name) == "absent" for labels in said), name


def test_most_sentences_deny() -> None:
    rng = np.random.default_rng(0)
    denying = asserting = 0
    for _ in range(300):
        findings = [Finding(str(rng.choice(DISEASES)), "left", "lower", "small")] if rng.random() < 0.5 else []
        for span in split_sentences(compose_report(findings, rng=rng)):
            states = {state for name, state in label_sentence(span.text).items() if name != "No Finding"}
            asserting += "present" in states
            denying += states == {"absent"}
    assert denying > 3 * asserting


@pytest.mark.parametrize("kind", KINDS)
def test_every_wording_names_side_and_severity(kind: str) -> None:
    wording = WORDINGS[kind]
    for seed in range(15):
        findings, impression = write(Finding(kind, "left", "upper", "small"), seed=seed).split(" IMPRESSION: ")
        for part in (findings, impression) if kind in DISEASES else (findings,):
            assert ("left" in part.lower()) == wording.sided
            assert "right" not in part.lower()
            assert not wording.severity or re.search(r"\b(small|mild|mildly)\b", part.lower()), part


@pytest.mark.parametrize("kind", KINDS)
def test_a_finding_of_which_only_the_kind_is_known_is_still_said(kind: str) -> None:
    for seed in range(15):
        text = write(Finding(kind), seed=seed, unknown=NIH_UNKNOWN)
        assert re.search(r" [.,]|  |\bin the [.,]|\bA[n]? \.|\b(left|right)\b", text) is None, text


@pytest.mark.parametrize("side", SIDES)
def test_articles_and_verbs_agree(side: Side) -> None:
    wrong = r"\b[Aa] ([aeiou]|bilateral)|\b[Aa]n [^aeiou]|is (small )?bilateral \w+s\b|are a\b"
    for kind in set(KINDS) - {"edema", "atelectasis"}:  # these two end in s or stand alone: no plural
        for seed in range(10):
            text = write(Finding(kind, side, "apex", ""), seed=seed)
            assert re.search(wrong, text) is None, text


def test_opacity_asserts_no_consolidation_and_consolidation_an_opacity() -> None:
    for seed in range(50):
        opacity = label_report(write(Finding("opacity", "left", "lower", "large"), seed=seed))
        assert opacity["Lung Opacity"] == "present"
        assert opacity.get("Consolidation") != "present" and opacity.get("Pneumonia") != "present"
        assert label_report(write(Finding("consolidation"), seed=seed))["Lung Opacity"] == "present"


def test_a_normal_study_reads_normal() -> None:
    text = write()
    assert text.startswith("FINDINGS: ") and " IMPRESSION: " in text
    assert label_report(text)["No Finding"] == "present"


def test_a_bedside_film_says_that_there_are_no_devices() -> None:
    assert label_report(write(view="AP"))["Support Devices"] == "absent"
    assert "Support Devices" not in label_report(write(view="PA"))


def test_same_seed_same_text_and_other_seeds_other_wordings() -> None:
    finding = Finding("nodule", "left", "upper")
    assert write(finding, seed=3) == write(finding, seed=3)
    assert len({write(finding, seed=seed) for seed in range(40)}) > 10


def test_words_are_few_and_reports_short() -> None:
    rng = np.random.default_rng(5)
    words: set[str] = set()
    lengths = []
    for _ in range(1000):
        text = compose_report(random_findings(rng)[:3], rng=rng, view="AP")
        found = re.findall(r"[a-z]+", text.lower())
        words.update(found)
        lengths.append(len(found))
    assert len(words) < 200
    assert 40 < np.mean(lengths) < 80 and max(lengths) < 120


def test_everything_unknown_still_makes_a_report() -> None:
    everything = frozenset(OBSERVATIONS) - {"No Finding"}
    assert label_report(write(unknown=everything)) == {"No Finding": "present"}
    assert label_report(write(Finding("pneumonia"), unknown=everything)) == {
        "Lung Opacity": "present",
        "Pneumonia": "present",
        "No Finding": "absent",
    }


@pytest.mark.parametrize("unknown", [frozenset({"Scoliosis"}), frozenset({"No Finding"})])
def test_what_cannot_be_unknown_is_refused(unknown: frozenset[str]) -> None:
    with pytest.raises(ValueError, match="unknown"):
        write(unknown=unknown)


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_prompts_assert_and_deny_their_observation_only(observation: str) -> None:
    positive, negative = prompts(observation)
    assert label_sentence(positive) == {observation: "present"}
    assert label_sentence(negative) == {observation: "absent"}


def test_no_prompts_for_an_unknown_observation() -> None:
    with pytest.raises(KeyError):
        prompts("Scoliosis")
