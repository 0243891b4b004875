"""Drafts from the report store: the likeliest next token of what was written, and the likeliest one after that.

A draft is one line of tokens: attention with a key buffer for one sequence has no branches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from trrg_sdk.decoding.greedy import Pass
from trrg_sdk.decoding.pace import Pace
from trrg_sdk.decoding.store import ORDER, ReportStore


class StoreDrafter:
    """Guesses from a store; learns from text to text how long a draft should be. One text at a time."""

    def __init__(self, store: ReportStore, pace: Pace | None = None) -> None:
        """Start with nothing learnt.

        Args:
            store: Where to look.
            pace: What was learnt already.
        """
        self._store = store
        self._pace = pace or Pace()
        self._confidences: list[float] = []
        self._looked = False
        self._followed = 0  # tokens of the text when it was looked at last
        self._end: list[int] = []  # its last ones
        self._context = 0  # that it ends with

    def propose(self, written: Sequence[int], *, most: int) -> Sequence[int] | None:
        """Guess the next tokens; see :class:`trrg_sdk.decoding.greedy.Drafter`."""
        if self._pace.resting():
            return None
        self._confidences, self._looked = [], self._pace.open and most > 0
        if not self._looked:
            return ()
        guesses = self._pace.cut(islice(self.line(written), most))
        self._confidences = [confidence for _, confidence in guesses]
        return [token for token, _ in guesses]

    def learn(self, outcome: Pass) -> None:
        """Hear what came of a pass; see :class:`trrg_sdk.decoding.greedy.Drafter`."""
        self._pace.learn(outcome, self._confidences, looked=self._looked)

    def line(self, written: Sequence[int]) -> Iterator[tuple[int, float]]:
        """Guess the next tokens, whatever it costs to read them.

        Args:
            written: The text so far.

        Yields:
            A token, and how sure it is, 0 to 1, given those before it.
        """
        store, context = self._store, self._follow(written)
        while guess := store.guess(context):
            yield guess
            context = store.after(context, guess[0])

    def _follow(self, written: Sequence[int]) -> int:
        """Return the longest context that a text ends with; from where it was left, if it is the text of before."""
        known, context = self._followed, self._context
        if known >= ORDER and list(written[known - ORDER : known]) == self._end:
            for token in written[known:]:
                context = self._store.after(context, token)
        else:
            context = self._store.context(written)
        self._followed, self._end, self._context = len(written), list(written[-ORDER:]), context
        return context
