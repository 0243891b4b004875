"""On which side a report says that its findings are."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.labeler import NO_FINDING, OBSERVATIONS, label_sentence, split_sentences
from trrg_train.data.study import Study

SIDES = ("left", "right")
BOTH = ("bilateral", "bilaterally", "both")
NAMED = re.compile(rf"\b(?:{'|'.join((*SIDES, *BOTH))})\b")


def asserted_sides(report: str) -> dict[str, frozenset[str]]:
    """Observations that the findings of a report assert, with the sides that those sentences name."""
    sides: dict[str, frozenset[str]] = {}
    for span in split_sentences(report):
        words = frozenset(NAMED.findall(span.text.lower()))
        named = frozenset(SIDES) if words.intersection(BOTH) else words
        for observation, state in label_sentence(span.text).items():
            if state == "present" and observation != NO_FINDING:
                sides[observation] = sides.get(observation, frozenset()) | named
    return sides


def side_matrix(studies: Sequence[Study]) -> NDArray[np.float32]:
    """Sides (left, right) of what the reports assert.

    Returns:
        float32 (K, 14, 2): 1 where the report names the side, 0 where only the other; NaN where it names none or does
        not assert the observation.
    """
    matrix = np.full((len(studies), len(OBSERVATIONS), len(SIDES)), np.nan, dtype=np.float32)
    for row, study in enumerate(studies):
        for observation, named in asserted_sides(study.report).items():
            if named:
                matrix[row, OBSERVATIONS.index(observation)] = [side in named for side in SIDES]
    return matrix
