"""Drafts from the report store: how reports that began like this one went on.

Candidates are the sentences that hold the last written words, or those that follow the last sentence. They vote token
by token, each with how often it was written; one that contradicts a clue of the image counts little. Past the end of
a sentence the draft goes on with the most frequent next one. A draft is one line of tokens: attention with a key
buffer for one sequence has no branches.
"""

from __future__ import annotations

from collections.abc import Sequence

from trrg_sdk.decoding.greedy import Pass
from trrg_sdk.decoding.pace import LONGEST, Pace
from trrg_sdk.decoding.store import Match, ReportStore

_CONTRADICTED = 0.05  # of the weight of a sentence that says the opposite of a clue
_FOLLOWS = 10.0  # times the weight of a sentence that often follows the one before


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
        self._present = self._absent = 0

    def about(self, *, present: int, absent: int) -> None:
        """Say what the next text is about.

        Args:
            present: Observations whose clues are present, one bit each.
            absent: Those whose clues are absent.
        """
        self._present, self._absent = present, absent

    def propose(self, written: Sequence[int], *, most: int) -> Sequence[int]:
        """Guess the next tokens; see :class:`trrg_sdk.decoding.greedy.Drafter`."""
        self._confidences = []
        if not self._pace.open or most < 1:
            return ()
        tokens, confidences = self.guess(written, most=min(most, LONGEST))
        length = self._pace.length(confidences)
        self._confidences = confidences[:length]
        return tokens[:length]

    def learn(self, outcome: Pass) -> None:
        """Hear what came of a pass; see :class:`trrg_sdk.decoding.greedy.Drafter`."""
        self._pace.learn(outcome, self._confidences)
        self._confidences = []

    def guess(self, written: Sequence[int], *, most: int) -> tuple[list[int], list[float]]:
        """Guess the next tokens, whatever it costs to read them.

        Args:
            written: The text so far.
            most: The most tokens to guess.

        Returns:
            Tokens, and how sure each is, 0 to 1, given those before it.
        """
        store = self._store
        sentence, before = store.current(written)
        tokens: list[int] = []
        confidences: list[float] = []
        if sentence:
            shared, matches = store.matches(sentence)
            usual = {row for row, _ in store.followers(before)} if before is not None else set()
            candidates = [self._weighed(one, _FOLLOWS if one.sentence in usual else 1.0) for one in matches]
            row = _vote(candidates, shared / (shared + 1), most, tokens, confidences)
        else:
            row = self._start_sentence(before, most, tokens, confidences)
        while row is not None and len(tokens) < most:  # a sentence is complete
            row = self._start_sentence(row, most, tokens, confidences)
        return tokens, confidences

    def _start_sentence(self, before: int | None, most: int, tokens: list[int], confidences: list[float]) -> int | None:
        """Guess a whole sentence that follows another one."""
        if before is None:
            return None
        follow = self._store.followers(before)
        candidates = [self._weighed(Match(row, self._store.tokens(row), times), 1.0) for row, times in follow]
        return _vote(candidates, 1.0, most, tokens, confidences)

    def _weighed(self, match: Match, factor: float) -> Match:
        asserts, denies = self._store.says(match.sentence)
        if asserts & self._absent or denies & self._present:
            factor *= _CONTRADICTED
        return match._replace(weight=match.weight * factor)


def _vote(
    candidates: Sequence[Match], trust: float, most: int, tokens: list[int], confidences: list[float]
) -> int | None:
    """Append the tokens that most of the weight agrees on.

    Args:
        candidates: Sentences and what is left of each.
        trust: Confidence where all agree.
        most: As many tokens as the lists may hold.
        tokens: Extended.
        confidences: Extended.

    Returns:
        The sentence that was completed, or None.
    """
    place = 0
    while candidates and len(tokens) < most:
        votes: dict[int, float] = {}
        total = 0.0
        for one in candidates:
            total += one.weight
            if place < len(one.rest):
                votes[one.rest[place]] = votes.get(one.rest[place], 0.0) + one.weight
        if not votes:
            return max(candidates, key=lambda one: one.weight).sentence
        token = max(votes, key=votes.__getitem__)
        tokens.append(token)
        confidences.append(trust * votes[token] / total)
        candidates = [one for one in candidates if place < len(one.rest) and one.rest[place] == token]
        place += 1
    return None
