"""Metrics of perception and of report labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata


def auc(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    """Area under the ROC curve (Mann-Whitney, ties count half); NaN without both classes.

    Args:
        scores: (K,).
        labels: (K,), 1, 0 or NaN (left out).
    """
    known = ~np.isnan(labels)
    s, y = scores[known], labels[known]
    positives = float(y.sum())
    negatives = len(y) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    ranks = rankdata(s)
    return float((ranks[y > 0.5].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def f1_per_class(predicted: NDArray[np.bool_], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 of each column; NaN where the known labels have no positive.

    Args:
        predicted: (K, C).
        labels: (K, C), 1, 0 or NaN (left out).
    """
    known = ~np.isnan(labels)
    truth = np.nan_to_num(labels) > 0.5
    hit = (predicted & truth & known).sum(0)
    wrong = (predicted & ~truth & known).sum(0)
    missed = (~predicted & truth & known).sum(0)
    total = 2 * hit + wrong + missed
    return np.where((truth & known).any(0), 2 * hit / np.maximum(total, 1), np.nan)


def macro(values: NDArray[np.float64]) -> float:
    """Mean over what is not NaN; NaN when nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
