"""Hold each sentence against the clues: does the image say what the text says?

The rules are our choice, made to be read in a minute. Distance means
``logit(probability) - logit(threshold)`` of the clue with the observation's name; a clue is *present* from
distance 0 on, and *clearly* present or absent from ``MARGIN`` on, where its odds are e times (2.7 times) away
from the threshold's.

| the sentence says | clue present | absent, within the margin | clearly absent |
|---|---|---|---|
| present | supported | unsupported | contradicted |
| uncertain | supported | supported | unsupported |
| absent | contradicted (unsupported within the margin) | supported | supported |

- A sentence that calls the study normal ("No Finding" present) is also contradicted by any disease that is
  clearly present. Support devices are no disease.
- The verdict of a sentence is the worst over what it says; a sentence that says nothing that a clue can answer is
  ``not_checkable``.
- A clue that the caller forced is judged like any other, and its evidence says that it was forced.
- A clue that counts as present and that no sentence asserts (present or uncertain) is an omission. "No Finding" is
  none, and the general words of ``IMPLIED_BY`` are covered by the special ones. A custom clue has no words in the
  labeler: it is always listed when present, because nobody checked whether the text speaks of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from trrg_sdk.labeler import OBSERVATIONS
from trrg_sdk.report import ClueScore, ClueScores, Evidence, HeatPeak, Omission, State, Verdict

MARGIN = 1.0
"""In logits; 1 means that the odds differ by the factor e."""

NO_FINDING = "No Finding"
DISEASES = frozenset(OBSERVATIONS) - {NO_FINDING, "Support Devices"}

IMPLIED_BY: Mapping[str, frozenset[str]] = {
    "Lung Opacity": frozenset({"Edema", "Consolidation", "Pneumonia", "Atelectasis", "Lung Lesion"}),
    "Enlarged Cardiomediastinum": frozenset({"Cardiomegaly"}),
}
"""General observation → the special ones that say it too (the label hierarchy of Irvin et al. 2019, CheXpert)."""

_WORST_FIRST: tuple[Verdict, ...] = ("contradicted", "unsupported", "supported")
_EPSILON = 1e-6


class Judgement(NamedTuple):
    """What the clues say about one sentence.

    Attributes:
        verdict: The worst over everything the sentence says.
        evidence: Every clue that was asked, in the bundle's order.
    """

    verdict: Verdict
    evidence: tuple[Evidence, ...]


def judge(labels: Mapping[str, State], clues: ClueScores, *, peaks: Mapping[str, HeatPeak]) -> Judgement:
    """Hold one sentence against the clues.

    Args:
        labels: Observation → state, what the sentence says.
        clues: All clue scores of the image.
        peaks: Clue → where it is strongest; a clue may be missing.

    Returns:
        The verdict and the clues it rests on.
    """
    asked = {clue.name: clue for clue in clues if clue.name in labels}
    verdicts: set[Verdict] = {_verdict(labels[name], distance(clue)) for name, clue in asked.items()}
    if labels.get(NO_FINDING) == "present":
        against = {clue.name: clue for clue in clues if clue.name in DISEASES and distance(clue) >= MARGIN}
        if against:
            verdicts.add("contradicted")
        asked |= against
    verdict: Verdict = next((worst for worst in _WORST_FIRST if worst in verdicts), "not_checkable")
    evidence = tuple(_evidence(clue, peaks) for clue in clues if clue.name in asked)
    return Judgement(verdict, evidence)


def omissions(
    sentences: Iterable[Mapping[str, State]], clues: ClueScores, *, peaks: Mapping[str, HeatPeak]
) -> tuple[Omission, ...]:
    """List what was perceived and not said.

    Args:
        sentences: The labels of each sentence.
        clues: All clue scores of the image.
        peaks: Clue → where it is strongest; a clue may be missing.

    Returns:
        In the bundle's order.
    """
    said = {name for labels in sentences for name, state in labels.items() if state != "absent"}
    said |= {name for name, special in IMPLIED_BY.items() if special & said}
    return tuple(
        Omission(clue.name, clue.probability, clue.threshold, clue.forced, _peak(clue, peaks))
        for clue in clues
        if clue.present and clue.name not in said and clue.name != NO_FINDING
    )


def distance(clue: ClueScore) -> float:
    """How far a clue is above (positive) or below its threshold, in logits."""
    return _logit(clue.probability) - _logit(clue.threshold)


def _verdict(state: State, gap: float) -> Verdict:
    if state == "present":
        return "supported" if gap >= 0 else "unsupported" if gap > -MARGIN else "contradicted"
    if state == "absent":
        return "supported" if gap < 0 else "unsupported" if gap < MARGIN else "contradicted"
    return "supported" if gap > -MARGIN else "unsupported"


def _logit(probability: float) -> float:
    bounded = min(max(probability, _EPSILON), 1 - _EPSILON)
    return math.log(bounded / (1 - bounded))


def _evidence(clue: ClueScore, peaks: Mapping[str, HeatPeak]) -> Evidence:
    return Evidence(clue.name, clue.probability, clue.threshold, clue.forced, _peak(clue, peaks))


def _peak(clue: ClueScore, peaks: Mapping[str, HeatPeak]) -> HeatPeak | None:
    return None if clue.forced else peaks.get(clue.name)
