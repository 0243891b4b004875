"""A score with everything that it must be read against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trrg_train.evaluation.bootstrap import Statistic, interval, resample_weights


@dataclass(frozen=True)
class Score:
    """One score; what cannot be computed is None.

    Attributes:
        name: Such as ``"BLEU-4"`` or ``"micro F1 (14)"``.
        value: On all references.
        low: Lower end of the 95 % interval of ``value``, patients resampled.
        high: Upper end.
        floor: The constant report on all references.
        lead_low: Lower end of the 95 % interval of ``value`` − ``floor``, both on the same resamples.
        lead_high: Upper end.
        new: ``value`` on the references that do not stand in train.
        new_floor: The constant report on those.
        label_floor: The same observations asserted for every study; None for a text score.
        note: Why there is no value.
    """

    name: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    lead_low: float | None = None
    lead_high: float | None = None
    new: float | None = None
    new_floor: float | None = None
    label_floor: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Weighting:
    """The weightings of K studies that every score is computed on.

    Attributes:
        rows: float64 (2 + R, K): all studies, those whose reference is new, R resamples of patients.
    """

    rows: NDArray[np.float64]

    @classmethod
    def of(cls, clusters: Sequence[str], new: NDArray[np.bool_], *, resamples: int, seed: int) -> Weighting:
        """Draw the resamples; a single patient gives none, since nothing varies.

        Args:
            clusters: Patient of each study, or the study.
            new: bool (K,).
            resamples: R.
            seed: Of the draw.
        """
        drawn = resamples if len(set(clusters)) > 1 else 0
        parts = [np.ones((1, len(new))), new[None].astype(np.float64)]
        if drawn:
            parts.append(resample_weights(clusters, resamples=drawn, seed=seed))
        return cls(np.concatenate(parts))

    def score(self, statistic: Statistic, floor: Statistic, *, labels: Statistic | None = None) -> Score:
        """Score a system beside the constant report and, where given, the constant labels."""
        values, floors = statistic.at(self.rows), floor.at(self.rows)
        low, high = interval(values[2:])
        lead_low, lead_high = interval(values[2:] - floors[2:])
        return Score(
            name=statistic.name,
            value=plain(values[0]),
            low=plain(low),
            high=plain(high),
            floor=plain(floors[0]),
            lead_low=plain(lead_low),
            lead_high=plain(lead_high),
            new=plain(values[1]),
            new_floor=plain(floors[1]),
            label_floor=plain(labels.at(self.rows[:1])[0]) if labels else None,
        )

    def scores(
        self,
        statistics: Mapping[str, Statistic],
        floors: Mapping[str, Statistic],
        *,
        labels: Mapping[str, Statistic] | None = None,
    ) -> tuple[Score, ...]:
        """Score all of a kind, in the order of ``statistics``."""
        given = labels or {}
        return tuple(self.score(one, floors[name], labels=given.get(name)) for name, one in statistics.items())


def plain(value: float) -> float | None:
    """A Python float, None for NaN."""
    return None if math.isnan(value) else float(value)
