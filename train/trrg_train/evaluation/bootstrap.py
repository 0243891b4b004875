"""Percentile intervals by resampling patients.

A score is kept as sums over studies (`Statistic`), so a resample of patients is one row of whole-number weights and all
resamples of a score are one matrix product: nothing is scored twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Statistic:
    """A score that depends on sums over studies only.

    Attributes:
        name: Such as ``"BLEU-4"``.
        rows: float64 (K, S), what each study adds.
        value: Sums (R, S) to scores (R,); NaN where a score is not defined.
    """

    name: str
    rows: NDArray[np.float64] = field(repr=False)
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]] = field(repr=False)

    def at(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Score each weighting of the studies, (R, K) to (R,)."""
        return self.value(weights @ self.rows)


def mean_statistic(name: str, scores: Sequence[float] | NDArray[np.float64]) -> Statistic:
    """The mean of K scores of single studies."""
    scored = np.asarray(scores, dtype=np.float64)
    return Statistic(name, np.stack([scored, np.ones_like(scored)], axis=1), lambda s: ratio(s[:, 0], s[:, 1]))


def ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide; NaN where the divisor is 0."""
    divided: NDArray[np.float64] = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)
    return divided


def resample_weights(clusters: Sequence[str], *, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each study occurs in each resample.

    All studies of a patient come or stay away together, since they are not independent (Field and Welsh 2007,
    "Bootstrapping clustered data").

    Args:
        clusters: Patient of each of the K studies; the study itself where patients are not known.
        resamples: R.
        seed: The same seed gives the same weights.

    Returns:
        float64 (R, K), whole numbers.
    """
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return drawn[:, member].astype(np.float64)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % percentile interval of resampled scores (R,); resamples without a score are left out.

    Returns:
        Low and high, NaN and NaN with fewer than two scores.
    """
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return float("nan"), float("nan")
    low, high = np.percentile(known, PERCENTILES)
    return float(low), float(high)
