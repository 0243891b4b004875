"""Figures of written reports that are computed from texts alone."""

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from trrg_train.data.sides import asserted_sides
from trrg_train.evaluate import laterality

LEFT = "FINDINGS: There is a small left pleural effusion. There is no right pneumothorax. IMPRESSION: Left effusion."
RIGHT = "FINDINGS: There is a right pleural effusion. IMPRESSION: Right pleural effusion."
BOTH = "FINDINGS: There are bilateral pleural effusions. IMPRESSION: Pleural effusions."
NO_SIDE = "FINDINGS: There is a pleural effusion. IMPRESSION: Pleural effusion."
NONE = "FINDINGS: There is no pleural effusion. IMPRESSION: No acute cardiopulmonary abnormality."


def test_sides_are_those_of_sentences_that_assert():
    assert asserted_sides(LEFT) == {"Pleural Effusion": {"left"}}
    assert asserted_sides(BOTH) == {"Pleural Effusion": {"left", "right"}}
    assert asserted_sides(NO_SIDE) == {"Pleural Effusion": frozenset()}
    assert asserted_sides(NONE) == {}


def test_laterality_counts_what_both_texts_assert_on_one_side():
    figures = laterality([LEFT, RIGHT, BOTH, NO_SIDE, NONE, LEFT], [LEFT, LEFT, LEFT, LEFT, LEFT, BOTH])
    assert figures == {"findings": 4, "same": 0.25, "other": 0.5, "none": 0.25}
    assert laterality([NONE], [NONE]) == {"findings": 0, "same": None, "other": None, "none": None}
