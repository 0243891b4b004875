"""The report store: sentences of the training reports as tokens, and where in them a text may go on.

A report is cut after tokens that end a sentence. A sentence that stands in at least ``least`` reports is kept, once:
sentences that are common are worth drafting, and what stands in a single report names nobody's finding. Three arrays:

``tokens``     big-endian unsigned (N,): 0, then the tokens of the first sentence each plus one, then 0 and the next.
``order``      uint32 (N,): the positions of ``tokens`` in the order of the tokens from there backwards. All positions
               that end with the same words lie side by side, so a search halves the array (a suffix array, reversed).
``sentences``  uint32 (M + 1, 12): start in ``tokens``, how many times it was written, observations it asserts and
               denies (one bit each), the 4 sentences that follow it most often, and how often each. The last row is
               the start of a report. The most frequent sentence comes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.errors import BundleError

FOLLOWERS = 4
COLUMNS = 4 + 2 * FOLLOWERS
_START, _COUNT, _ASSERTS, _DENIES, _NEXT, _TIMES = 0, 1, 2, 3, 4, 4 + FOLLOWERS
_LONGEST = 24  # tokens of a text that are compared
_SAMPLED = 2048  # of the positions that match, those that are looked at
_CANDIDATES = 12  # of these, the most frequent ones

Sentence = tuple[int, ...]


class StoreArrays(NamedTuple):
    """The three arrays, see above."""

    tokens: NDArray[Any]
    order: NDArray[np.uint32]
    sentences: NDArray[np.uint32]


class Match(NamedTuple):
    """Where a text may go on.

    Attributes:
        sentence: Its row.
        rest: Tokens after what is written, to the end of the sentence.
        weight: How often this was written.
    """

    sentence: int
    rest: tuple[int, ...]
    weight: float


def build_store(
    reports: Sequence[Sequence[int]],
    *,
    ends: Collection[int],
    least: int,
    findings: Callable[[Sentence], tuple[int, int]],
) -> StoreArrays:
    """Make a store; the work grows with the tokens and, for their order, with their number times its logarithm.

    Args:
        reports: Token ids of each with its end token.
        ends: Tokens that end a sentence, the end token among them.
        least: In how many reports a sentence has to stand.
        findings: Tokens of a sentence → observations it asserts and denies, one bit each.
    """
    reports_of, count, pairs = Counter[Sentence](), Counter[Sentence](), Counter[tuple[Sentence, Sentence]]()
    for report in reports:
        cut = list(split(report, ends))
        reports_of.update(set(cut))
        count.update(cut)
        pairs.update(pairwise([(), *cut]))
    kept = sorted((one for one in count if reports_of[one] >= least), key=lambda one: (-count[one], one))
    stream = np.zeros(sum(len(one) + 1 for one in kept), np.int64)
    table = np.zeros((len(kept) + 1, COLUMNS), np.uint32)
    at = 0
    for row, one in enumerate(kept):
        stream[at + 1 : at + 1 + len(one)] = np.add(one, 1)
        table[row, : _DENIES + 1] = (at, count[one], *findings(one))
        at += len(one) + 1
    table[-1, : _COUNT + 1] = (at, len(reports))
    _fill_followers(table, kept, pairs)
    wide = ">u2" if stream.max(initial=0) < 2**16 else ">u4"
    return StoreArrays(stream.astype(wide), backward_order(stream), table)


def split(report: Sequence[int], ends: Collection[int]) -> Iterator[Sentence]:
    """Cut a report after every token that ends a sentence."""
    start = 0
    for place, token in enumerate(report, start=1):
        if token in ends or place == len(report):
            yield tuple(report[start:place])
            start = place


def backward_order(stream: NDArray[np.integer[Any]]) -> NDArray[np.uint32]:
    """Sort positions by what stands there and before: prefix doubling, one sort for each power of two (Manber, Myers).

    Args:
        stream: (N,), whole numbers from 0.
    """
    ranks = np.unique(stream, return_inverse=True)[1].astype(np.int64)
    reach = 1
    while True:
        before = np.full(len(ranks), -1, np.int64)  # the beginning sorts first
        before[reach:] = ranks[:-reach] if reach < len(ranks) else before[reach:]
        keys = ranks * (len(ranks) + 1) + before + 1
        order = np.argsort(keys, kind="stable")
        fresh = np.zeros(len(ranks), bool)
        fresh[1:] = np.diff(keys[order]) > 0
        ranks = np.empty(len(ranks), np.int64)
        ranks[order] = np.cumsum(fresh)
        reach *= 2
        if reach > _LONGEST:  # further back nothing is compared
            return order.astype(np.uint32)


def _fill_followers(
    table: NDArray[np.uint32], kept: Sequence[Sentence], pairs: Counter[tuple[Sentence, Sentence]]
) -> None:
    """Write into each row which sentences come after it, the most frequent first; a free place counts 0."""
    rows = {(): len(kept), **{one: row for row, one in enumerate(kept)}}
    filled = [0] * (len(kept) + 1)
    for (first, second), times in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        row, after = rows.get(first), rows.get(second)
        if row is not None and after is not None and filled[row] < FOLLOWERS:
            table[row, _NEXT + filled[row]] = after
            table[row, _TIMES + filled[row]] = times
            filled[row] += 1


class ReportStore:
    """Looks sentences up. The arrays may be memory-mapped; copies of the tokens and of some columns are in memory."""

    def __init__(self, arrays: StoreArrays, *, ends: Collection[int], label: str = "drafts") -> None:
        """Keep a store.

        Args:
            arrays: As :func:`build_store` makes them.
            ends: Tokens that end a sentence.
            label: For messages.

        Raises:
            BundleError: The arrays do not fit each other.
        """
        self._tokens, self._order, self._table = (np.asarray(array) for array in arrays)
        self._ends = frozenset(ends)
        starts = self._table[:, _START] if self._table.ndim == 2 else self._table
        fits = self._table.shape[1:] == (COLUMNS,) and len(self._table) > 0 and len(self._order) == len(self._tokens)
        if not fits or starts[-1] != len(self._tokens) or (np.diff(starts.astype(np.int64)) < 1).any():
            raise BundleError(
                f"{label}: the arrays of the report store do not fit each other. Export the bundle again."
            )
        if len(self._order) and int(self._order.max()) >= len(self._tokens):
            raise BundleError(f"{label}: the order points outside of the tokens. Export the bundle again.")
        if (self._table[:, _NEXT:_TIMES] >= len(self._table)).any():
            raise BundleError(f"{label}: a sentence is followed by one that is not there. Export the bundle again.")
        self._backwards = self._tokens[::-1].tobytes()
        self._width = self._tokens.dtype.itemsize
        # Views give whole numbers one by one several times as fast as arrays do.
        self._ranked = np.ascontiguousarray(self._order).data
        self._start_of, self._count, self._asserts, self._denies = (
            np.ascontiguousarray(self._table[:, column]).data for column in (_START, _COUNT, _ASSERTS, _DENIES)
        )
        lengths: Any = np.diff(starts.astype(np.int64))
        self._row_at = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths).data  # of each place
        self._row_of, self._sentence = lru_cache(4096)(self._find_row), lru_cache(4096)(self._read)

    @property
    def start(self) -> int:
        """The row that stands for the start of a report."""
        return len(self._table) - 1

    def current(self, written: Sequence[int]) -> tuple[Sentence, int | None]:
        """Return the tokens of the sentence that is being written, and the row of the one before it if it is known."""
        begin = self._begin(written, len(written))
        if begin == 0:
            return tuple(written), self.start
        return tuple(written[begin:]), self._row_of(tuple(written[self._begin(written, begin - 1) : begin]))

    def _begin(self, written: Sequence[int], end: int) -> int:
        """Where the sentence begins that ``written[:end]`` ends with."""
        while end > 0 and written[end - 1] not in self._ends:
            end -= 1
        return end

    def tokens(self, row: int) -> Sentence:
        """Return the tokens of a sentence."""
        return self._sentence(row)

    def _read(self, row: int) -> Sentence:
        first, last = self._start_of[row], self._start_of[row + 1]
        return tuple((self._tokens[first + 1 : last].astype(np.int64) - 1).tolist())

    def says(self, row: int) -> tuple[int, int]:
        """Return the observations that a sentence asserts and denies, one bit each."""
        return self._asserts[row], self._denies[row]

    def followers(self, row: int) -> list[tuple[int, int]]:
        """Return which sentences come after one and how often, the most frequent first."""
        cells = self._table[row].tolist()
        both = zip(cells[_NEXT:_TIMES], cells[_TIMES:], strict=True)
        return [(after, times) for after, times in both if times]

    def matches(self, sentence: Sentence) -> tuple[int, list[Match]]:
        """Find how a sentence that was begun goes on in the store.

        Args:
            sentence: Its tokens so far, at least one.

        Returns:
            How many of the last tokens stand in the store like this (one more where a sentence begins with them), and
            the most frequent places where they do; none when fewer than two do.
        """
        query = self._key([*(token + 1 for token in reversed(sentence[-_LONGEST:])), 0][:_LONGEST])
        width = self._width
        spot = self._bisect(query)
        shared = max((_shared(query, self._context(at)) for at in (spot - 1, spot)), default=0) // width
        if shared < 2:
            return 0, []
        low, high = self._bisect(query[: shared * width]), self._bisect(query[: shared * width] + b"\xff" * width)
        places = self._order[low : high : max(1, (high - low) // _SAMPLED)]
        if len(places) > _CANDIDATES:  # the smaller the place, the more frequent its sentence
            places = np.partition(places, _CANDIDATES)[:_CANDIDATES]
        found = []
        for place in places.tolist():
            row = self._row_at[place]
            found.append(Match(row, self._sentence(row)[place - self._start_of[row] :], self._count[row]))
        return shared, found

    def _find_row(self, sentence: Sentence) -> int | None:
        query = self._key([*(token + 1 for token in reversed(sentence)), 0][:_LONGEST])
        spot = self._bisect(query)
        if spot == len(self._order) or not self._context(spot).startswith(query):
            return None
        row = self._row_at[self._ranked[spot]]
        return row if self.tokens(row) == sentence else None

    def _key(self, backwards: Sequence[int]) -> bytes:
        return np.asarray(backwards, self._tokens.dtype).tobytes()

    def _context(self, at: int) -> bytes:
        """What stands at the place with this rank and before it, backwards: big-endian, so bytes sort as tokens do."""
        if not 0 <= at < len(self._ranked):
            return b""
        start = len(self._backwards) - (self._ranked[at] + 1) * self._width
        return self._backwards[start : start + _LONGEST * self._width]

    def _bisect(self, key: bytes) -> int:
        """Return how many places come before a key."""
        ranked, text, width, end = self._ranked, self._backwards, self._width, len(self._backwards)
        reach, low, high = _LONGEST * width, 0, len(ranked)
        while low < high:
            middle = (low + high) // 2
            start = end - (ranked[middle] + 1) * width
            if text[start : start + reach] < key:
                low = middle + 1
            else:
                high = middle
        return low


def _shared(first: bytes, second: bytes) -> int:
    """Count the bytes that two keys begin with alike."""
    for count, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return count
    return min(len(first), len(second))
