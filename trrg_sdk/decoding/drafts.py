"""Drafts from the report store: the likeliest next token of what was written, and the likeliest one after that.

A draft is one line of tokens: attention with a key buffer for one sequence has no branches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from trrg_sdk.decoding.greedy import Pass
from trrg_sdk.decoding.pace import Pace
from trrg_sdk.decoding.store import ReportStore


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

    def propose(self, written: Sequence[int], *, most: int) -> Sequence[int] | None:
        """Guess the next tokens; see :class:`trrg_sdk.decoding.greedy.Drafter`."""
        if self._pace.resting():
            return None
        self._confidences, self._looked = [], self._pace.open and most > 0
        if not self._looked:
            return ()
        tokens: list[int] = []
        length = self._pace.length(self._confident(written, most, tokens))
        self._confidences = self._confidences[:length]
        return tokens[:length]

    def _confident(self, written: Sequence[int], most: int, tokens: list[int]) -> Iterator[float]:
        """Guess token after token, as long as somebody asks how sure the next one is."""
        for token, confidence in islice(self.line(written), most):
            tokens.append(token)
            self._confidences.append(confidence)
            yield confidence

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
        store = self._store
        context = store.context(written)
        while guess := store.guess(context):
            yield guess
            context = store.after(context, guess[0])
