"""What a score must be read against: one constant report made from train, and how much of the test train holds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import split_sentences
from trrg_train.data.cleaning import comparable
from trrg_train.evaluation.text import bleu, bleu_counts, tokenize

WHOLE_REPORTS = 20
MAX_SENTENCES = 12
SAMPLE = 300

RULE = (
    f"of the {WHOLE_REPORTS} most frequent whole train reports and the 1 to {MAX_SENTENCES} most frequent train "
    f"sentences strung together, the text with the highest BLEU-4 (plain tokens) on {SAMPLE} train reports"
)


@dataclass(frozen=True)
class Floor:
    """The constant report.

    Attributes:
        text: Written for every study; train text, hence never printed.
        kind: ``"whole report"`` or ``"sentences"``.
        share: Of the train reports, how many are this very text (``data.cleaning.comparable``).
        reports: How many train reports it was chosen from.
    """

    text: str = field(repr=False)
    kind: str
    share: float
    reports: int


def in_train(references: Sequence[str], train_reports: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each reference stands word for word in train, bool (K,); case and punctuation do not count."""
    known = {comparable(text) for text in train_reports}
    return np.array([comparable(text) in known for text in references], dtype=bool)


def constant_report(train_reports: Sequence[str], *, seed: int) -> Floor:
    """Choose the constant report by ``RULE``, from train alone.

    Args:
        train_reports: As written.
        seed: Chooses the train reports that the candidates are compared on.

    Raises:
        UsageError: There is no train report with a word.
    """
    reports = [text for text in train_reports if comparable(text)]
    if not reports:
        raise UsageError("the constant-report floor is made from train reports: at least one with a word is needed")
    chosen = np.random.default_rng(seed).permutation(len(reports))[:SAMPLE]
    sample = tokenize([reports[row] for row in chosen], tokenizer="plain")
    candidates = [("whole report", text) for text in frequent_reports(reports)]
    candidates += [("sentences", text) for text in frequent_sentences(reports)]
    kind, text = max(candidates, key=lambda candidate: _fit(candidate[1], sample))
    same = sum(comparable(report) == comparable(text) for report in reports)
    return Floor(text, kind, same / len(reports), len(reports))


def frequent_reports(reports: Sequence[str]) -> list[str]:
    """The most frequent whole reports, each in the form that occurs first."""
    counts = Counter(comparable(text) for text in reports)
    first: dict[str, str] = {}
    for text in reports:
        first.setdefault(comparable(text), text)
    return [first[key] for key, _ in counts.most_common(WHOLE_REPORTS)]


def frequent_sentences(reports: Sequence[str]) -> list[str]:
    """The most frequent sentence, the two most frequent and so on, in the order in which reports say them."""
    places: defaultdict[str, list[float]] = defaultdict(list)
    first: dict[str, str] = {}
    for report in reports:
        spans = split_sentences(report)
        for place, span in enumerate(spans):
            key = comparable(span.text)
            first.setdefault(key, span.text)
            places[key].append(place / len(spans))
    ranked = sorted(places, key=lambda key: -len(places[key]))[:MAX_SENTENCES]
    prefixes = [sorted(ranked[:k], key=lambda key: float(np.mean(places[key]))) for k in range(1, len(ranked) + 1)]
    return [" ".join(first[key] for key in prefix) for prefix in prefixes]


def _fit(text: str, sample: Sequence[str]) -> float:
    (constant,) = tokenize([text], tokenizer="plain")
    counts = bleu_counts([constant] * len(sample), sample)
    return float(bleu(counts.sum(axis=0, keepdims=True), order=4)[0])
