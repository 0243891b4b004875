"""One clue of the bank: name, prompts, calibration and threshold; read without PyTorch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class BankedClue:
    """One clue.

    Attributes:
        name: An observation of the CheXpert set, or a site's own name.
        positive: Prompt of its presence.
        negative: Prompt of its absence.
        scale: Calibration on the validation set: probability = sigmoid(scale * logit + offset).
        offset: See ``scale``.
        threshold: Probability from which on the clue counts as present.
    """

    name: str
    positive: str
    negative: str
    scale: float = 1.0
    offset: float = 0.0
    threshold: float = 0.5

    def calibrated(self, *, scale: float, offset: float, threshold: float) -> BankedClue:
        """Return the same clue with other figures."""
        return dataclasses.replace(self, scale=scale, offset=offset, threshold=threshold)
