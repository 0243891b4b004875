import math

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")
pytestmark = pytest.mark.torch

from trrg_train.calibration import best_threshold, calibrate, platt
from trrg_train.metrics import auc, f1_per_class, macro
from trrg_train.models.clue import BankedClue


def test_platt_finds_the_scale_and_offset_that_made_the_labels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=20_000) * 3
    y = (rng.random(len(x)) < 1 / (1 + np.exp(-(0.7 * x - 1.2)))).astype(float)
    scale, offset = platt(x, y)
    assert scale == pytest.approx(0.7, abs=0.05)
    assert offset == pytest.approx(-1.2, abs=0.06)


def test_the_threshold_is_the_one_of_the_best_f1():
    probability = np.array([0.9, 0.8, 0.7, 0.4, 0.2])
    labels = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    at = best_threshold(probability, labels)

    def f1(t):
        said = probability >= t
        return 2 * (said & (labels > 0)).sum() / (said.sum() + labels.sum())

    assert f1(at) == max(f1(t) for t in np.linspace(0.01, 0.99, 99))


def test_a_clue_without_enough_examples_keeps_its_figures():
    bank = [BankedClue("A", "p", "n"), BankedClue("B", "p", "n", scale=3.0)]
    logits = np.random.default_rng(1).normal(size=(100, 2))
    labels = np.column_stack([(logits[:, 0] > 0).astype(float), np.full(100, np.nan)])
    a, b = calibrate(bank, logits, labels)
    assert a.scale > 1.5
    assert b == bank[1]


def test_auc_counts_ties_half_and_leaves_out_unknown_labels():
    assert auc(np.array([0.9, 0.8, 0.1]), np.array([1.0, 1.0, 0.0])) == 1.0
    assert auc(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == 0.5
    assert auc(np.array([0.1, 0.9, 0.3]), np.array([1.0, np.nan, 0.0])) == 0.0
    assert math.isnan(auc(np.array([0.1]), np.array([1.0])))


def test_f1_and_macro_leave_out_what_has_no_positive():
    said = np.array([[True, True], [False, True]])
    labels = np.array([[1.0, 0.0], [1.0, np.nan]])
    f1 = f1_per_class(said, labels)
    assert f1[0] == pytest.approx(2 / 3)
    assert math.isnan(f1[1])
    assert macro(f1) == pytest.approx(2 / 3)
