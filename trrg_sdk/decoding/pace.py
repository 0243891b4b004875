"""How long a draft should be: what guesses of this kind were worth so far, and what a longer pass costs here.

Nothing is known beforehand about a device, so both are learnt from the passes of the text itself. The time that
drafts cost more than they gave stands in an account. When it is overdrawn drafts rest: passes are then made as if there
were none, without a look at the clock. After a while a few are tried again, and each rest without a gain between is
twice as long as the one before, so drafts that are no use cost one or two percent in all.
"""

from __future__ import annotations

from bisect import bisect, bisect_left
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import islice

from trrg_sdk.decoding.greedy import Pass

Guess = tuple[int, float]

LONGEST = 16
_DEBT = 8.0  # passes of one position that drafts may cost more than they give, before the first rest
_RETRY = 2.0  # the same after a rest
_REST = 150  # passes of the first rest
_LONGEST_REST = 4800
_CREDIT = 60.0  # the most of them that past gains may pay for
_DISTURBED = 1.5  # passes of one position; a draft that takes longer was disturbed
_STEP = 0.02  # by which the median of single passes follows
_FOLLOWS = 0.01  # of what was expected: by which that of longer ones does
_LEAPS = 0.25  # the same at first
_WIDTHS = (1, 2, 4, 8, LONGEST + 1)  # whose costs are learnt; between two of them they lie on a line
_PLAIN_FIRST = 3  # passes of one position that are timed before the first draft
_CONFIDENT = (0.25, 0.45, 0.65, 0.8, 0.9, 0.95)  # confidences between which guesses are counted together
_MEMORY = 60.0  # guesses of a class that count
_PROBE = 30  # passes without a draft after which a short one is read to see whether that is still no use
_PROBED = 3  # its tokens
_HOPELESS = 0.1  # chance of a token behind which no more are guessed
_TRUSTED = 2.0  # passes of a width after which wider ones are judged by it
_HOPED = 0.05  # of a pass of one position, for each more than were ever read
_SLOPE = 0.15  # of a pass of one position, for each more: what is believed before it is measured


class Acceptance:
    """How often guesses of each confidence turn out right."""

    def __init__(self) -> None:
        """Believe that a guess is about as good as it says, with the weight of ten guesses."""
        self._right = [10.0 * believed for believed in (0.2, *_CONFIDENT)]
        self._seen = [10.0] * len(self._right)

    def chance(self, confidence: float) -> float:
        """Return how likely a guess of this confidence, 0 to 1, is right."""
        kind = bisect(_CONFIDENT, confidence)
        return self._right[kind] / self._seen[kind]

    def learn(self, confidence: float, *, right: bool) -> None:
        """Count a guess."""
        kind = bisect(_CONFIDENT, confidence)
        if self._seen[kind] >= _MEMORY:
            self._right[kind] *= 1 - 1 / _MEMORY
            self._seen[kind] *= 1 - 1 / _MEMORY
        self._right[kind] += right
        self._seen[kind] += 1


class Costs:
    """What passes and drafts cost, in passes over one position.

    Other work of the machine makes a pass a hundred times longer now and then, or all of them twice as long: so the
    unit is the median of single passes as it follows, and the cost of longer ones follows a median too (the sign of an
    error counts, not its size: the subgradient of the absolute error). Some kernels take two or four positions in the
    time of one and then as much again for each, so no straight line fits, and the costs of a few widths are learnt.

    Attributes:
        single: Seconds of a pass over one position, 0 before it is known.
        drafting: Cost of making a draft.
    """

    def __init__(self) -> None:
        """Know nothing."""
        self.single = 0.0
        self.drafting = 0.25
        self._first: list[float] = []
        self._before = 0  # width of the last pass
        self._at = [1.0 + _SLOPE * (width - 1) for width in _WIDTHS]
        self._seen = [0.0] * len(_WIDTHS)  # passes that each of them followed

    @property
    def known(self) -> bool:
        """Whether single passes were timed."""
        return self.single > 0

    def learn(self, width: int, seconds: float) -> None:
        """Count a pass; one of 0 seconds was not timed.

        A single one right after a longer one is no measure of the unit: the runtime changes its plan between them, and
        without drafts it would not have to.
        """
        steady, self._before = width == self._before, width
        if seconds == 0 or (width == 1 and not steady):
            return
        if width == 1 and not self.known:
            self._first.append(seconds)
            self.single = min(self._first) if len(self._first) == _PLAIN_FIRST else 0.0
        elif width == 1:
            self.single *= 1 + _STEP if seconds > self.single else 1 - _STEP
        elif self.known:
            expected = self.of(width)
            sign = 1 if seconds > expected * self.single else -1
            for place, share in _shares(width):
                step = max(_FOLLOWS, _LEAPS / (1 + self._seen[place] / 10))
                self._seen[place] += share
                if place:  # the unit stays what it is
                    self._at[place] = max(1.0, self._at[place] + sign * share * step * expected)
            self._believe_of_wider()

    def _believe_of_wider(self) -> None:
        """Hope that what nobody read yet costs little more than the widest that was: believed dear, never tried."""
        if self._seen[-1] >= _TRUSTED:
            return
        widest = max(place for place, passes in enumerate(self._seen) if passes >= _TRUSTED or not place)
        for place in range(widest + 1, len(_WIDTHS) if widest else 0):
            if self._seen[place] < 1:
                self._at[place] = self._at[widest] + _HOPED * (_WIDTHS[place] - _WIDTHS[widest])

    def learn_drafting(self, seconds: float) -> None:
        """Count a draft."""
        if self.known:
            self.drafting += (min(seconds / self.single, _DISTURBED) - self.drafting) / 20

    def of(self, width: int) -> float:
        """Return what a pass is expected to cost, 1 for one position."""
        cost = 0.0
        for place, share in _shares(width):
            cost += self._at[place] * share
        return cost


@cache
def _shares(width: int) -> tuple[tuple[int, float], ...]:
    """Between which of the widths one lies, and how near it is to each."""
    above = max(1, bisect_left(_WIDTHS, width))
    low, high = _WIDTHS[above - 1 : above + 1]
    share = (width - low) / (high - low)
    return tuple((place, part) for place, part in ((above - 1, 1 - share), (above, share)) if part)


class Pace:
    """Decides whether a draft is made, and how much of it is read."""

    def __init__(self) -> None:
        """Begin with what is believed before anything was measured."""
        self.costs = Costs()
        self.acceptance = Acceptance()
        self._lost = 0.0  # single passes that drafts cost more than they gave, since the last rest
        self._allowed = _DEBT  # how many of them they may cost before the next one
        self._rest = 0  # passes for which nothing is drafted
        self._spell = _REST  # of the next rest
        self._idle = 0  # passes since the last draft

    @property
    def open(self) -> bool:
        """Whether a draft may be made now."""
        return self.costs.known and self._rest == 0

    def resting(self) -> bool:
        """Count a pass of a rest; false when there is none, and drafts are tried (again)."""
        if self._rest == 0:
            return False
        self._rest -= 1
        return True

    def cut(self, draft: Iterable[Guess]) -> list[Guess]:
        """Return as much of a draft as is worth reading, which may be nothing.

        Args:
            draft: Its tokens in order, each with a confidence from 0 to 1. Further ones are asked for while they may
                matter.
        """
        best, length = 1.02, 0  # tokens in the time of a single pass; below that it is not worth the trouble
        expected, chance, seen = 1.0, 1.0, list[Guess]()
        for guess in islice(draft, LONGEST):
            seen.append(guess)
            chance *= self.acceptance.chance(guess[1])
            expected += chance
            if (gain := expected / self.costs.of(len(seen) + 1)) > best:
                best, length = gain, len(seen)
            if chance < _HOPELESS and len(seen) >= _PROBED:
                break
        if self._idle >= _PROBE:
            length = length or _PROBED
        return seen[:length]

    def learn(self, outcome: Pass, confidences: Sequence[float], *, looked: bool) -> None:
        """Count a pass that is not of a rest.

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
        if looked:
            self.costs.learn_drafting(outcome.drafting)
        spent = self.costs.of(outcome.width) + outcome.settling + looked * self.costs.drafting
        self._settle(self._lost + spent - outcome.written)

    def _settle(self, lost: float) -> None:
        """Keep the account: overdrawn, it rests, each time longer; after a gain it may be overdrawn as at first."""
        self._lost = max(lost, -_CREDIT)
        if self._lost > self._allowed:
            self._lost, self._allowed = 0.0, _RETRY
            self._rest, self._spell = self._spell, min(2 * self._spell, _LONGEST_REST)
            self._idle = _PROBE  # a draft is read at once after it
        elif self._lost < -_RETRY:
            self._allowed, self._spell = _DEBT, _REST
