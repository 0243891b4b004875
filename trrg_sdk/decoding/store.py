"""The report store: which token comes next after which run of tokens in the training reports.

A *context* is a run of up to :data:`ORDER` tokens of a report, its start counted as one, that stands in at least
``least`` reports. For each the store keeps the likeliest next token and how likely it is: what followed there, mixed
with what followed its end, and the end of that (interpolated absolute discounting: Kneser and Ney 1995). What stands in
fewer reports is in none of the counts.

A text is followed from context to context: to the one with its next token at the end or, where there is none, to the
same without its first tokens (Aho and Corasick 1975). So a step takes a search among few, whatever the store holds.

Five arrays have an entry for each context, by their number of tokens, then by the context without the last token, then
by that token; the first one is the empty context:

``tokens``    unsigned (N,): its last token plus one; 0 for the empty one and for the start of a report.
``children``  uint32 (N,): where the contexts begin that are one token longer; they lie side by side.
``shorter``   uint32 (N,): the context without its first token.
``guesses``   unsigned (N,): the likeliest next token plus one; 0 where a report ends.
``chances``   uint8 (N,): how likely that token is, in 255ths.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.errors import BundleError

ORDER = 8
MOST = 2**18
"""Contexts that a store has at most: 3.4 MB for vocabularies below 65,536."""

_DISCOUNT = 0.9  # of each count, for what is mixed in of shorter contexts
_SURE = 255
_START = -1  # stands before a report's first token

Index = NDArray[np.int64]
Share = NDArray[np.float64]


class StoreArrays(NamedTuple):
    """The five arrays, see above."""

    tokens: NDArray[Any]
    children: NDArray[np.uint32]
    shorter: NDArray[np.uint32]
    guesses: NDArray[Any]
    chances: NDArray[np.uint8]


class _Level(NamedTuple):
    """Contexts of one length; places are those on the level before, of contexts with one token less.

    Attributes:
        token: Last token of each, plus one.
        parent: Place of each without its last token.
        shorter: Place of each without its first token.
        times: How often it occurs.
        reports: In how many reports.
        begins: Whether it holds the start of a report.
    """

    token: Index
    parent: Index
    shorter: Index
    times: Index
    reports: Index
    begins: NDArray[np.bool_]


class _Guesses(NamedTuple):
    """The likeliest next token after each context of a level, plus one, and how likely it is."""

    token: Index
    chance: Share


class _Stream(NamedTuple):
    """All reports, one after the other: 0 before each, every token plus one, and which report each place is of."""

    tokens: Index
    report: Index


def build_store(reports: Sequence[Sequence[int]], *, least: int) -> tuple[StoreArrays, int]:
    """Make a store, with a sort of all tokens for each length of a context.

    Args:
        reports: Token ids of each with its end token.
        least: In how many reports a run of tokens has to stand, a context and the next token together; at least 1.

    Returns:
        The arrays, and in how many reports every context stands: more than ``least`` where there would be more than
        :data:`MOST` of them.
    """
    stream = _stream(reports)
    nothing = np.zeros(1, np.int64)
    levels = [_Level(nothing, nothing, nothing, nothing, nothing, np.zeros(1, bool))]
    ends = np.zeros(len(stream.tokens), np.int64)  # the empty context ends everywhere
    for size in range(ORDER + 1):
        before = np.roll(ends, 1)
        if size:
            before[stream.tokens == 0] = -1  # nothing stands before a report's start
        runs, ends = _runs(before, ends, stream, least)
        begins = runs.token == 0 if size == 0 else levels[-1].begins[runs.parent]
        levels.append(runs._replace(begins=begins))
    guesses = _guesses(levels, last=np.unique([report[-1] + 1 for report in reports]))
    least = _affordable(levels[1:-1], least)
    return _arrays(levels[:-1], guesses, least), least


def _stream(reports: Sequence[Sequence[int]]) -> _Stream:
    lengths = np.array([len(report) + 1 for report in reports], np.int64)
    tokens = np.zeros(lengths.sum(), np.int64)
    for end, report in zip(np.cumsum(lengths).tolist(), reports, strict=True):
        tokens[end - len(report) : end] = np.add(report, 1)
    return _Stream(tokens, np.repeat(np.arange(len(reports)), lengths))


def _runs(before: Index, ends: Index, stream: _Stream, least: int) -> tuple[_Level, Index]:
    """Find the contexts with one token more.

    Args:
        before: The context that ends before each place of the stream, -1 for none.
        ends: The one that ends there.
        stream: The reports.
        least: In how many of them a context stands.

    Returns:
        The contexts, and which of them ends at each place, -1 for none.
    """
    places = np.flatnonzero(before >= 0)
    keys = before[places] * (stream.tokens.max(initial=0) + 1) + stream.tokens[places]
    order = np.argsort(keys, kind="stable")
    places, keys = places[order], keys[order]
    fresh = np.diff(keys, prepend=-1) != 0
    group = np.cumsum(fresh) - 1
    another = fresh | (np.diff(stream.report[places], prepend=-1) != 0)
    reports = np.bincount(group, another).astype(np.int64)
    kept = reports >= least
    found = np.full(len(before), -1, np.int64)
    found[places] = np.where(kept, np.cumsum(kept) - 1, -1)[group]
    heads = places[fresh][kept]
    times = np.bincount(group)[kept]
    return _Level(stream.tokens[heads], before[heads], ends[heads], times, reports[kept], np.zeros(0, bool)), found


def _guesses(levels: Sequence[_Level], *, last: Index) -> list[_Guesses]:
    """Choose the next token of each context but those of the last level.

    Args:
        levels: All contexts and, as the last level, they and the next token.
        last: Tokens that end a report, plus one: nothing follows.
    """
    chances = np.zeros(1)
    found = [_Guesses(np.zeros(1, np.int64), chances)]
    for number, (level, runs) in enumerate(pairwise(levels)):
        further = levels[number + 2].shorter if number + 2 < len(levels) else None
        rest, following = _chances(level, runs, chances, _weights(runs, further))
        shorter = found[-1]
        token, chance = shorter.token[level.shorter], rest * shorter.chance[level.shorter]
        order = np.lexsort((following, runs.parent))
        top = order[np.diff(runs.parent[order], append=-1) != 0]  # the likeliest after each context
        better = top[following[top] >= chance[runs.parent[top]]]
        token[runs.parent[better]], chance[runs.parent[better]] = runs.token[better], following[better]
        over = np.isin(level.token, last)
        found.append(_Guesses(np.where(over, 0, token), np.where(over, 0, chance)))
        chances = following
    return found[1:]


def _weights(runs: _Level, further: Index | None) -> Share:
    """How much each of the contexts counts: in how many ways it is preceded, as far as one looks further back.

    A token that is frequent after a single word only says nothing of it after others (Kneser and Ney 1995).

    Args:
        runs: The contexts.
        further: Those with one token more, each without its first token.
    """
    if further is None:
        return runs.times.astype(float)
    ways = np.maximum(np.bincount(further, minlength=len(runs.token)), 1)
    weights: Share = np.where(runs.begins, runs.times, ways).astype(float)
    return weights


def _chances(level: _Level, runs: _Level, shorter: Share, weights: Share) -> tuple[Share, Share]:
    """How likely the last token of a context is after the others.

    Args:
        level: Contexts with one token less.
        runs: The contexts.
        shorter: Such chances of ``level``.
        weights: Of the contexts.

    Returns:
        For each of ``level`` what is left for tokens after the same context without its first token, and the chances.
    """
    weights = np.where(runs.token > 0, weights, 0)  # the start of a report follows nothing
    total = np.bincount(runs.parent, weights, minlength=len(level.token))
    discount = _DISCOUNT if len(level.token) > 1 else 0.0
    share = np.maximum(weights - discount, 0) / np.maximum(total, 1)[runs.parent]
    rest = np.maximum(1 - np.bincount(runs.parent, share, minlength=len(level.token)), 0)
    return rest, share + rest[runs.parent] * shorter[runs.shorter]


def _affordable(levels: Sequence[_Level], least: int) -> int:
    """In how many reports contexts must stand so that there are not too many, the empty one counted."""
    reports = np.sort(np.concatenate([level.reports for level in levels]))[::-1]
    return least if len(reports) < MOST else max(least, int(reports[MOST - 1]) + 1)


def _arrays(levels: Sequence[_Level], guesses: Sequence[_Guesses], least: int) -> StoreArrays:
    """Write the contexts one after the other that stand in enough reports: so do all that they begin or end with."""
    keep = [np.ones(1, bool), *(level.reports >= least for level in levels[1:])]
    sizes = [int(kept.sum()) for kept in keep]
    first = np.cumsum([0, *sizes])
    children, shorter = [], [np.zeros(1, np.int64)]
    for number, kept in enumerate(keep):
        parents = np.zeros(0, np.int64)
        if number + 1 < len(levels):
            parents = levels[number + 1].parent[keep[number + 1]]
            shorter.append(first[number] + (np.cumsum(kept) - 1)[levels[number + 1].shorter[keep[number + 1]]])
        children.append(first[number + 1] + np.searchsorted(parents, np.flatnonzero(kept)))
    token = np.concatenate([part.token[kept] for part, kept in zip(levels, keep, strict=True)])
    guess = np.concatenate([part.token[kept] for part, kept in zip(guesses, keep, strict=True)])
    chance = np.concatenate([part.chance[kept] for part, kept in zip(guesses, keep, strict=True)])
    wide = np.uint16 if token.max(initial=0) < 2**16 else np.uint32
    return StoreArrays(
        token.astype(wide),
        np.concatenate(children).astype(np.uint32),
        np.concatenate(shorter).astype(np.uint32),
        guess.astype(wide),
        np.rint(chance * _SURE).astype(np.uint8),
    )


class ReportStore:
    """Follows texts from context to context. The arrays may be memory-mapped."""

    def __init__(self, arrays: StoreArrays, *, vocabulary: int, label: str = "drafts") -> None:
        """Keep a store.

        Args:
            arrays: As :func:`build_store` makes them.
            vocabulary: Tokens that there are.
            label: For messages.

        Raises:
            BundleError: The arrays do not fit each other or the vocabulary.
        """
        size = len(arrays.tokens)
        fits = size > 0 and all(array.shape == (size,) and array.dtype.kind == "u" for array in arrays)
        if not fits or not _sound(arrays, size):
            raise BundleError(
                f"{label}: the arrays of the report store do not fit each other. Export the bundle again."
            )
        if max(int(arrays.tokens.max()), int(arrays.guesses.max())) > vocabulary:
            raise BundleError(
                f"{label}: the report store has tokens beyond a vocabulary of {vocabulary}. Export the bundle again."
            )
        # Views give whole numbers one by one several times as fast as arrays do.
        self._tokens, self._children, self._shorter, self._guesses, self._chances = (
            np.ascontiguousarray(array).data for array in arrays
        )

    def __len__(self) -> int:
        """How many contexts there are, the empty one counted."""
        return len(self._tokens)

    def context(self, written: Sequence[int]) -> int:
        """Return the longest context that a text ends with.

        Args:
            written: Its tokens so far, from its start.
        """
        found = self.after(0, _START) if len(written) < ORDER else 0
        for token in written[-ORDER:]:
            found = self.after(found, token)
        return found

    def after(self, context: int, token: int) -> int:
        """Return the longest context of a text with one token more.

        Args:
            context: What :meth:`context` or :meth:`after` returned for the text.
            token: That is written next.
        """
        wanted, tokens, children = token + 1, self._tokens, self._children
        while True:  # spelled out: it is most of what a draft costs
            end = children[context + 1] if context + 1 < len(children) else len(tokens)
            found = bisect_left(tokens, wanted, children[context], end)
            if found < end and tokens[found] == wanted:
                return found
            if context == 0:
                return 0
            context = self._shorter[context]

    def guess(self, context: int) -> tuple[int, float] | None:
        """Return the likeliest next token and how likely it is, 0 to 1; None where a report has ended."""
        token = self._guesses[context]
        return (token - 1, self._chances[context] / _SURE) if token else None


def _sound(arrays: StoreArrays, size: int) -> bool:
    """Whether contexts lead to contexts that are there, and to ever shorter ones."""
    children, shorter = arrays.children.astype(np.int64), arrays.shorter.astype(np.int64)
    rising = (np.diff(children) >= 0).all() and (children > np.arange(size)).all() and children[-1] <= size
    return bool(rising and (shorter[1:] < np.arange(1, size)).all() and shorter[0] == 0)
