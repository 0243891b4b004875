"""A draft is as long as pays: guesses and costs are learnt, and drafts that are no use rest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from trrg_sdk.decoding.greedy import Pass
from trrg_sdk.decoding.pace import LONGEST, Costs, Guess, Pace

SURE = [(5, 0.9)] * LONGEST


def spent(pace: Pace, *, passes: int, right: float, slope: float, lookup: float = 0.05) -> tuple[float, float]:
    """Seconds of a simulated text with drafts, and of the same one without."""
    rng = np.random.default_rng(0)
    total = plain = 0.0
    for _ in range(passes):
        if pace.resting():
            total, plain = total + 1, plain + 1
            continue
        looked, confidences = pace.open, list[float]()
        if looked:
            confidences = [confidence for _, confidence in pace.cut(SURE)]
        accepted = 0
        while accepted < len(confidences) and rng.random() < right:
            accepted += 1
        width = 1 + len(confidences)
        seconds = 1 + slope * (width - 1)
        pace.learn(Pass(width, 1 + accepted, seconds, lookup * looked, 0), confidences, looked=looked)
        total, plain = total + seconds + lookup * looked, plain + 1 + accepted
    return total, plain


@pytest.mark.parametrize("lookup", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("slope", [0.0, 0.2, 0.4, 1.0])
@pytest.mark.parametrize("right", [0.0, 0.3, 0.6])
def test_drafts_that_are_no_use_cost_little(right: float, slope: float, lookup: float) -> None:
    """A few dozen reports are enough for at least 0.97 of the speed without drafts, whatever they are worth."""
    total, plain = spent(Pace(), passes=1500, right=right, slope=slope, lookup=lookup)
    assert total <= plain / 0.97
    pace = Pace()
    spent(pace, passes=5000, right=right, slope=slope, lookup=lookup)
    total, plain = spent(pace, passes=5000, right=right, slope=slope, lookup=lookup)
    assert total <= plain / 0.99


@pytest.mark.parametrize(("change", "slope"), [(0.0, 0.01), (0.0, 0.05), (0.2, 0.02)])
def test_where_wide_passes_cost_little_drafts_become_long(change: float, slope: float) -> None:
    """Nobody read that many positions before, so a cost believed too high would never be found out.

    Some runtimes make a pass of another width than the last one dearer, whatever the width.
    """
    pace = Pace()
    for _ in range(200):
        right = len(pace.cut(SURE)) if pace.open else 0
        seconds = 1 + change * (right > 0) + slope * right
        pace.learn(Pass(1 + right, 1 + right, seconds, 0.05, 0), [0.9] * right, looked=pace.open)
    assert pace.cut(SURE) == SURE
    assert pace.costs.of(LONGEST + 1) == pytest.approx(1 + change + slope * LONGEST, rel=0.1)


def test_past_gains_pay_for_few_losses() -> None:
    pace = Pace()
    spent(pace, passes=2000, right=0.95, slope=0.15)
    total, plain = spent(pace, passes=2000, right=0.0, slope=0.15)
    assert total <= 1.01 * plain + 80


@pytest.mark.parametrize("slope", [0.02, 0.1, 0.35])
def test_costs_are_medians_on_a_machine_that_does_other_work(slope: float) -> None:
    """Every fourth pass, of any width, is interrupted for ten times its length."""
    costs, rng = Costs(), np.random.default_rng(1)
    for _ in range(1500):
        width = int(rng.choice([1, 2, 4, 8, 16]))
        seconds = 0.003 * (1 + slope * (width - 1)) * rng.uniform(0.95, 1.05)
        costs.learn(width, seconds * (11 if rng.random() < 0.25 else 1))
    for width in (2, 4, 8, 16):
        assert costs.of(width) == pytest.approx(1 + slope * (width - 1), rel=0.2)


def test_costs_follow_a_device_that_reads_two_positions_in_the_time_of_one() -> None:
    """Measured for int4 kernels: no straight line through all of them is near."""
    costs, rng = Costs(), np.random.default_rng(1)
    measured = {1: 1.0, 2: 1.05, 4: 1.8, 8: 3.3, 17: 6.7}
    for _ in range(2000):
        width = int(rng.choice(list(measured)))
        costs.learn(width, 0.0005 * measured[width] * rng.uniform(0.95, 1.05))
    for width, cost in measured.items():
        assert costs.of(width) == pytest.approx(cost, rel=0.1)
    assert costs.of(2) < costs.of(3) < costs.of(4) < costs.of(6) < costs.of(8)


def test_a_single_pass_after_a_longer_one_is_no_measure() -> None:
    """The runtime plans anew between them: without drafts it would not."""
    costs = Costs()
    for width in (1, 1, 1, 1, *(4, 1) * 200):
        costs.learn(width, 0.002 if width == 1 and costs.known else 0.001)
    assert costs.single == pytest.approx(0.001)
    for _ in range(200):
        costs.learn(1, 0.002)
    assert costs.single == pytest.approx(0.002, rel=0.1)


def test_no_more_is_guessed_than_may_be_of_use() -> None:
    asked = list[float]()

    def unsure() -> Iterator[Guess]:
        while True:
            asked.append(0.1)
            yield 5, 0.1

    assert len(Pace().cut(unsure())) <= 1
    assert len(asked) < 5


def test_each_rest_without_a_gain_is_longer() -> None:
    pace, rests = Pace(), list[int]()
    for _ in range(4):
        spent(pace, passes=1, right=0.0, slope=0.5)
        while not pace.resting():
            spent(pace, passes=1, right=0.0, slope=0.5)
        rests.append(1)
        while pace.resting():
            rests[-1] += 1
    assert rests == sorted(set(rests)), rests
    assert rests[-1] > 6 * rests[0]


def test_good_drafts_on_a_flat_device_are_long_and_pay() -> None:
    total, plain = spent(Pace(), passes=300, right=0.95, slope=0.02)
    assert total < plain / 4


def test_drafts_come_back_when_they_are_good_again() -> None:
    pace = Pace()
    spent(pace, passes=1000, right=0.0, slope=0.2)
    total, plain = spent(pace, passes=4000, right=0.95, slope=0.05)
    assert total < plain / 2
