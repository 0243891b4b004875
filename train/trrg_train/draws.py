"""Which studies are drawn in which order, and the randomness that belongs to each draw.

Everything random about a draw follows from the seed and from its number, so that a run that was killed and resumed, or
that is spread over several processes, sees what an uninterrupted one sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from trrg_sdk.errors import UsageError


class Draw(NamedTuple):
    """One study, drawn once.

    Attributes:
        study: Index of the study.
        number: How many draws came before this one in the whole run.
    """

    study: int
    number: int


class Draws(Dataset[Draw]):
    """All draws of a run, in order: each epoch is a new permutation of the studies, repeats included."""

    def __init__(self, studies: Sequence[int], *, epochs: float, seed: int) -> None:
        """Lay down the order.

        Args:
            studies: Indices of one epoch.
            epochs: Passes over them; the last may be a part.
            seed: Of the permutations.

        Raises:
            UsageError: There is no study, or no draw of one.
        """
        if not studies:
            raise UsageError("no study is in the split train; look at the sources with trrg-train data check")
        count = round(epochs * len(studies))
        if count < 1:
            raise UsageError(f"epochs = {epochs:g} draws none of {len(studies)} studies: give more")
        order = np.array(studies, dtype=np.int64)
        passes = -(-count // len(order))
        rows = [np.random.default_rng([seed, epoch]).permutation(order) for epoch in range(passes)]
        self.order = np.concatenate(rows)[:count]

    def __len__(self) -> int:
        """Count of the whole run."""
        return len(self.order)

    def __getitem__(self, item: int) -> Draw:
        """Return a draw."""
        return Draw(int(self.order[item]), item)


def draw_random(draw: Draw, *, seed: int) -> tuple[np.random.Generator, torch.Generator]:
    """Randomness of one draw, from the seed and its number: the same in whatever batch or process it lands."""
    return generators(seed, draw.number)


def generators(*seeds: int) -> tuple[np.random.Generator, torch.Generator]:
    """Two sources of randomness that follow from some numbers."""
    state = np.random.SeedSequence(seeds)
    own = int(state.generate_state(1, np.uint64)[0] >> np.uint64(1))
    return np.random.default_rng(state), torch.Generator().manual_seed(own)
