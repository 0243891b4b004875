"""Clinical scores: do a written report and its reference assert the same observations?

Conventions, printed with every table. Micro pools all decisions. Macro is the mean over the observations that the
references assert at least once. Example is the mean over studies of the score of one study, 0 where nothing is
asserted on a side that divides, as in scikit-learn's ``average="samples", zero_division=0``; two reports that agree on
asserting nothing therefore add 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.labeler import OBSERVATIONS, State, label_report
from trrg_train.evaluation.bootstrap import Statistic, mean_statistic, ratio

Uncertain = Literal["absent", "present"]
UNCERTAIN: tuple[Uncertain, ...] = ("absent", "present")
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The observations of the CheXpert competition (Irvin et al. 2019), which the field calls "the 5"."""
SETS: Mapping[int, tuple[str, ...]] = {14: OBSERVATIONS, 5: FIVE}
MEASURES = ("precision", "recall", "F1")
EXAMPLE_CONVENTION = "mean over studies, 0 where a side asserts nothing, both sides included"


@dataclass(frozen=True)
class Labeler:
    """Reads observations out of reports.

    Attributes:
        name: As printed with the scores.
        label: Texts to observation → state, only for what is mentioned.
    """

    name: str
    label: Callable[[Sequence[str]], Sequence[Mapping[str, State]]]


def label_reports(texts: Sequence[str]) -> list[dict[str, State]]:
    """Label with the runtime's sentence labeler."""
    return [label_report(text) for text in texts]


SENTENCE_LABELER = Labeler("trrg_sdk.labeler", label_reports)


def asserted(texts: Sequence[str], labeler: Labeler, *, uncertain: Uncertain) -> NDArray[np.bool_]:
    """What each text asserts, bool (K, 14).

    Args:
        texts: K reports.
        labeler: Reads them.
        uncertain: ``"absent"`` takes a doubt for a denial, ``"present"`` for an assertion (CheXpert's U-Zeros and
            U-Ones).
    """
    counted = {"present", "uncertain"} if uncertain == "present" else {"present"}
    rows = [[row.get(name) in counted for name in OBSERVATIONS] for row in labeler.label(texts)]
    return np.array(rows, dtype=bool).reshape(len(texts), len(OBSERVATIONS))


def clinical_statistics(said: NDArray[np.bool_], truth: NDArray[np.bool_]) -> dict[str, Statistic]:
    """Precision, recall and F1 over 14 and 5 observations: micro, macro and example-based.

    Args:
        said: (K, 14), what the written reports assert.
        truth: (K, 14), what the references assert.

    Returns:
        By name, such as ``"micro F1 (14)"``.
    """
    found: list[Statistic] = []
    for size, names in SETS.items():
        at = [OBSERVATIONS.index(name) for name in names]
        part, wanted = said[:, at], truth[:, at]
        counts = _counts(part, wanted)  # (K, 3, C)
        for measure in MEASURES:
            micro = partial(_of_counts, measure=measure)
            found.append(Statistic(f"micro {measure} ({size})", counts.sum(axis=2), micro))
            macro = partial(_macro, measure=measure)
            found.append(Statistic(f"macro {measure} ({size})", counts.reshape(len(counts), -1), macro))
            each = np.nan_to_num(_of_counts(counts.sum(axis=2), measure=measure))
            found.append(mean_statistic(f"example {measure} ({size})", each))
    return {statistic.name: statistic for statistic in found}


def observation_statistics(said: NDArray[np.bool_], truth: NDArray[np.bool_]) -> dict[str, dict[str, Statistic]]:
    """Precision, recall and F1 of each observation; both (K, 14)."""
    counts = _counts(said, truth)
    return {
        name: {m: Statistic(m, counts[:, :, at], partial(_of_class, measure=m)) for m in MEASURES}
        for at, name in enumerate(OBSERVATIONS)
    }


def best_constant_labels(truth: NDArray[np.bool_], said_on: NDArray[np.bool_]) -> dict[str, Statistic]:
    """The floor that needs no report: the same observations asserted for every study.

    Tried are the k most frequent observations of the train part, k from 1 to 14; each score takes the k that serves
    it best there.

    Args:
        truth: (N, 14), what train reports assert; chooses k.
        said_on: (K, 14), what the references assert; is scored.

    Returns:
        The floor of each score of ``clinical_statistics``; empty without train reports.
    """
    if not len(truth):
        return {}
    order = np.argsort(-truth.sum(axis=0), kind="stable")
    tried = []
    for k in range(1, len(order) + 1):
        constant = np.isin(np.arange(len(order)), order[:k])
        tried.append((_scores(constant, truth), constant))
    return {name: _floor(name, tried, said_on) for name in tried[0][0]}


def _floor(
    name: str, tried: Sequence[tuple[Mapping[str, float], NDArray[np.bool_]]], said_on: NDArray[np.bool_]
) -> Statistic:
    _, constant = max(tried, key=lambda pair: pair[0][name])
    return clinical_statistics(_everywhere(constant, said_on), said_on)[name]


def _scores(constant: NDArray[np.bool_], truth: NDArray[np.bool_]) -> dict[str, float]:
    once = np.ones((1, len(truth)))
    statistics = clinical_statistics(_everywhere(constant, truth), truth)
    return {name: float(np.nan_to_num(statistic.at(once)[0])) for name, statistic in statistics.items()}


def _everywhere(constant: NDArray[np.bool_], like: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.broadcast_to(constant, like.shape)


def _counts(said: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Hits, assertions and wanted assertions of each study and observation, float64 (K, 3, C)."""
    return np.stack([said & truth, said, truth], axis=1).astype(np.float64)


def _of_counts(counts: NDArray[np.float64], *, measure: str) -> NDArray[np.float64]:
    """A measure from hits, assertions and wanted (..., 3) to (...); NaN where nothing was wanted or asserted at all."""
    hit, said, wanted = counts[..., 0], counts[..., 1], counts[..., 2]
    if measure == "precision":
        return np.where(wanted > 0, np.nan_to_num(ratio(hit, said)), ratio(hit, said))
    return ratio(hit, wanted) if measure == "recall" else ratio(2 * hit, said + wanted)


def _of_class(counts: NDArray[np.float64], *, measure: str) -> NDArray[np.float64]:
    """A measure of one observation; NaN where the references never assert it."""
    return np.where(counts[..., 2] > 0, _of_counts(counts, measure=measure), np.nan)


def _macro(sums: NDArray[np.float64], *, measure: str) -> NDArray[np.float64]:
    """Mean over the observations that are wanted, (R, 3 * C) to (R,)."""
    counts = np.moveaxis(sums.reshape(len(sums), 3, -1), 1, 2)  # (R, C, 3)
    each = _of_class(counts, measure=measure)
    known = ~np.isnan(each)
    return ratio(np.nan_to_num(each).sum(axis=1), known.sum(axis=1).astype(np.float64))
