"""Calibration of clue logits and the choice of thresholds, on the validation split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from trrg_train.models.clue import BankedClue

MIN_POSITIVES = 5


def calibrate(
    bank: Sequence[BankedClue], logits: NDArray[np.float64], labels: NDArray[np.float64]
) -> tuple[BankedClue, ...]:
    """Fit a scale, an offset and a threshold for each clue.

    Args:
        bank: C clues.
        logits: (K, C), uncalibrated, on studies that were not trained on.
        labels: (K, C), 1, 0 or NaN.

    Returns:
        The bank with its figures. A clue with fewer than five known positives or negatives keeps those it had.
    """
    fitted = []
    for column, clue in enumerate(bank):
        known = ~np.isnan(labels[:, column])
        x, y = logits[known, column], labels[known, column]
        if min(y.sum(), (1 - y).sum()) < MIN_POSITIVES:
            fitted.append(clue)
            continue
        scale, offset = platt(x, y)
        probability = 1.0 / (1.0 + np.exp(-(scale * x + offset)))
        fitted.append(clue.calibrated(scale=scale, offset=offset, threshold=best_threshold(probability, y)))
    return tuple(fitted)


def platt(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Fit probability = sigmoid(scale * x + offset), scale above 0, with Platt's smoothed targets (1999)."""
    positives = y.sum()
    high, low = (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2)
    target = np.where(y > 0.5, high, low)

    def loss(parameters: NDArray[np.float64]) -> float:
        z = np.exp(parameters[0]) * x + parameters[1]
        return float(np.mean(np.logaddexp(0.0, z) - target * z))

    best = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-7})
    return float(np.exp(best.x[0])), float(best.x[1])


def best_threshold(probability: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Find the threshold of the best F1, in the middle between its neighbours, kept in [0.05, 0.95]."""
    order = np.argsort(-probability)
    p, hits = probability[order], np.cumsum(y[order])
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + y.sum())
    at = int(np.argmax(f1))
    after = p[at + 1] if at + 1 < len(p) else 0.0
    return float(np.clip((p[at] + after) / 2, 0.05, 0.95))
