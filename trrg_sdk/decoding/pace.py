"""How long a draft should be: what guesses of this kind were worth so far, and what a longer pass costs here.

Nothing is known beforehand about a device, so both are learnt from the passes of the text itself. The time that
drafts cost more than they gave stands in an account; while it is overdrawn nothing is drafted, and one pass in each
thirty pays it back, so that drafts which are no use cost about three percent.
"""

from __future__ import annotations

from collections.abc import Sequence

from trrg_sdk.decoding.greedy import Pass

LONGEST = 16
_SHARE = 0.03  # of the time without drafts that drafts may cost
_CREDIT = 20.0  # passes of one position: the most that past gains may pay for
_DISTURBED = 3.0  # times what was expected: a longer pass was not the fault of its draft
_PLAIN_FIRST = 3  # passes of one position that are timed before the first draft
_CLASSES = 6
_MEMORY = 60.0  # guesses of a class that count
_PROBE = 30  # passes without a draft after which one token is drafted to see whether that is still no use
_SLOPE = 0.15  # of a pass of one position, for each more: what is believed before it is measured


class Acceptance:
    """How often guesses of each confidence turn out right."""

    def __init__(self) -> None:
        """Believe that a guess is about as good as it says, with the weight of ten guesses."""
        self._right = [10.0 * (0.2 + 0.7 * number / (_CLASSES - 1)) for number in range(_CLASSES)]
        self._seen = [10.0] * _CLASSES

    @staticmethod
    def _class(confidence: float) -> int:
        return min(_CLASSES - 1, int(confidence * (_CLASSES - 1) + 1e-9))

    def chance(self, confidence: float) -> float:
        """Return how likely a guess of this confidence, 0 to 1, is right."""
        kind = self._class(confidence)
        return self._right[kind] / self._seen[kind]

    def learn(self, confidence: float, *, right: bool) -> None:
        """Count a guess."""
        kind = self._class(confidence)
        if self._seen[kind] >= _MEMORY:
            self._right[kind] *= 1 - 1 / _MEMORY
            self._seen[kind] *= 1 - 1 / _MEMORY
        self._right[kind] += right
        self._seen[kind] += 1


class Costs:
    """Seconds of a pass by the number of positions it reads: one of its own for a single one, a line for more."""

    def __init__(self) -> None:
        """Know nothing."""
        self.single = 0.0
        self.drafting = 0.0
        self._singles = 0
        self._sums = [0.0] * 5  # weight, widths, their squares, seconds, widths times seconds

    @property
    def known(self) -> bool:
        """Whether single passes were timed."""
        return self._singles >= _PLAIN_FIRST

    def learn(self, width: int, seconds: float) -> None:
        """Count a pass; other work of the machine makes it count as at most three times what was expected."""
        if self.known:
            seconds = min(seconds, _DISTURBED * self.of(width))
        if width == 1:
            self._singles += 1
            self.single = (
                seconds if self._singles == 1 else self.single + (seconds - self.single) / min(self._singles, 20)
            )
            return
        added = (1.0, width, width * width, seconds, width * seconds)
        self._sums = [0.98 * old + new for old, new in zip(self._sums, added, strict=True)]

    def learn_drafting(self, seconds: float) -> None:
        """Count the seconds of a draft; the first one is slower than those that follow."""
        expected = self.drafting or self.single
        self.drafting = expected + (min(seconds, _DISTURBED * expected) - expected) / 10

    def of(self, width: int) -> float:
        """Return the seconds that a pass is expected to take."""
        if width == 1:
            return self.single
        # Two passes of weight 1 that nobody made, of 2 and of LONGEST positions, hold the line until there are more.
        believed = [(near, self.single * (1 + _SLOPE * (near - 1))) for near in (2, LONGEST)]
        weight, widths, squares, times, products = self._sums
        for near, seconds in believed:
            weight, widths, squares = weight + 1, widths + near, squares + near * near
            times, products = times + seconds, products + near * seconds
        slope = (weight * products - widths * times) / (weight * squares - widths * widths)
        return max(self.single, (times - slope * widths) / weight + max(0.0, slope) * width)


class Pace:
    """Decides how much of a draft is read."""

    def __init__(self) -> None:
        """Begin with what is believed before anything was measured."""
        self.costs = Costs()
        self.acceptance = Acceptance()
        self._lost = 0.0  # seconds that drafts cost more than they gave
        self._idle = 0  # passes since the last draft

    @property
    def open(self) -> bool:
        """Whether a draft may be made now."""
        return self.costs.known and self._lost <= _CREDIT / 4 * self.costs.single

    def length(self, confidences: Sequence[float]) -> int:
        """Return how many tokens of a draft to read, 0 for none.

        Args:
            confidences: Of its tokens, 0 to 1, in order.
        """
        single = self.costs.single
        best, length = 1.02, 0  # tokens in the time of a single pass; below that it is not worth the trouble
        expected, chance = 1.0, 1.0
        for count, confidence in enumerate(confidences[:LONGEST], start=1):
            chance *= self.acceptance.chance(confidence)
            expected += chance
            if (gain := expected * single / self.costs.of(count + 1)) > best:
                best, length = gain, count
        return length or int(self._idle >= _PROBE and len(confidences) > 0)

    def learn(self, outcome: Pass, confidences: Sequence[float], *, looked: bool) -> None:
        """Count a pass.

        Args:
            outcome: What came of it.
            confidences: Of the tokens of its draft that were read; empty without a draft.
            looked: Whether a draft was looked for.
        """
        self.costs.learn(outcome.width, outcome.seconds)
        self._idle = 0 if confidences else self._idle + 1
        accepted = outcome.written - 1
        for place, confidence in enumerate(confidences[: accepted + 1]):
            self.acceptance.learn(confidence, right=place < accepted)
        single, spent = self.costs.single, outcome.settling * self.costs.single
        if outcome.width > 1:
            spent += min(outcome.seconds, _DISTURBED * self.costs.of(outcome.width))
        else:
            spent += single
        if looked:
            self.costs.learn_drafting(outcome.drafting)
            spent += min(outcome.drafting, _DISTURBED * self.costs.drafting)
        self._lost = max(self._lost + spent - (1 + _SHARE) * outcome.written * single, -_CREDIT * single)
