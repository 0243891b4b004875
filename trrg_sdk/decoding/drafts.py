"""Drafts from the report store: how reports that began like this one went on.

Candidates are the sentences that hold the last written words, or those that follow the last sentence. They vote token
by token, each with how often it was written; one that contradicts a clue of the image counts little. Past the end of
a sentence the draft goes on with the most frequent next one. A draft is one line of tokens: attention with a key
buffer for one sequence has no branches.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from trrg_sdk.decoding.greedy import Pass
from trrg_sdk.decoding.pace import Pace
from trrg_sdk.decoding.store import Match, ReportStore, Sentence

_CONTRADICTED = 0.05  # of the weight of a sentence that says the opposite of a clue
_START = 9  # the start of a sentence is trusted like so many shared tokens
_FOLLOWS = 10.0  # times the weight of a sentence that often follows the one before


class _Found(NamedTuple):
    """How a sentence may go on.

    Attributes:
        sentence: What is written of it.
        shared: How many of its last tokens all candidates share with it.
        candidates: Sentences, weighed, and what is left of each.
    """

    sentence: Sentence
    shared: int
    candidates: list[Match]


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
        self._known: dict[int | None, _Found] = {}
        self._begun: dict[int, _Found] = {}
        self._present = self._absent = 0

    def about(self, *, present: int, absent: int) -> None:
        """Say what the next text is about.

        Args:
            present: Observations whose clues are present, one bit each.
            absent: Those whose clues are absent.
        """
        self._present, self._absent = present, absent
        self._known, self._begun = {}, {}

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
        sentence, before = self._store.current(written)
        found = self._narrowed(sentence, before) or self._searched(sentence, before)
        self._known = {before: found}
        while (row := (yield from _vote(found))) is not None:  # a sentence is complete
            if row not in self._begun:
                self._begun[row] = self._searched((), row)
            self._known[row] = found = self._begun[row]

    def _narrowed(self, sentence: Sentence, before: int | None) -> _Found | None:
        """Of what was found last time, what still fits; None when nothing does, and a search is needed."""
        known = self._known.get(before)
        if known is None or sentence[: len(known.sentence)] != known.sentence:
            return None
        more = sentence[len(known.sentence) :]
        count = len(more)
        left = [Match(row, rest[count:], weight) for row, rest, weight in known.candidates if rest[:count] == more]
        return _Found(sentence, known.shared + len(more), left) if left else None

    def _searched(self, sentence: Sentence, before: int | None) -> _Found:
        """Look up how a sentence goes on, or which ones follow the one before."""
        store = self._store
        follow = store.followers(before) if before is not None else []
        if not sentence:
            whole = [Match(row, store.tokens(row), times * self._fit(row)) for row, times in follow]
            return _Found((), _START, whole)
        shared, matches = store.matches(sentence)
        usual = {row for row, _ in follow}
        weighed = [
            Match(row, rest, times * self._fit(row) * (_FOLLOWS if row in usual else 1.0))
            for row, rest, times in matches
        ]
        return _Found(sentence, shared, weighed)

    def _fit(self, row: int) -> float:
        """How well a sentence fits the clues."""
        asserts, denies = self._store.says(row)
        return _CONTRADICTED if asserts & self._absent or denies & self._present else 1.0


def _vote(found: _Found) -> Generator[tuple[int, float], None, int | None]:
    """Guess the rest of a sentence: the tokens that most of the weight agrees on.

    Args:
        found: Sentences and what is left of each.

    Yields:
        A token, and how sure it is.

    Returns:
        The sentence that is then complete, or None where nothing is known.
    """
    trust, candidates, place = found.shared / (found.shared + 1), found.candidates, 0
    while candidates:
        votes: dict[int, float] = {}
        total = 0.0
        for _, rest, weight in candidates:
            total += weight
            if place < len(rest):
                votes[rest[place]] = votes.get(rest[place], 0.0) + weight
        if not votes:
            return max(candidates, key=lambda one: one.weight).sentence
        token = max(votes, key=votes.__getitem__)
        yield token, trust * votes[token] / total
        if len(votes) > 1 or total > votes[token]:
            candidates = [one for one in candidates if place < len(one.rest) and one.rest[place] == token]
        place += 1
    return None
