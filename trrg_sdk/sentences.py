"""From generated tokens to the sentences of a report, each with how sure the model was of its words."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

from trrg_sdk.errors import InputError
from trrg_sdk.labeler import split_sentences
from trrg_sdk.report import Stopped

_CUT = "the text reached the longest length allowed and may lack its end; an unfinished sentence is left out"
_LEFT_OUT = "the program also wrote something that is no sentence about the image (a number, another section): left out"
_COMPLETE = re.compile(r"[.!?][\"')\]]*\s*\Z")


class WrittenSentence(NamedTuple):
    """One sentence as it was written.

    Attributes:
        text: Without its heading.
        section: ``"findings"``, ``"impression"`` or "".
        logprob: Mean natural-log probability of its tokens.
    """

    text: str
    section: str
    logprob: float


class Written(NamedTuple):
    """What the model wrote.

    Attributes:
        text: Exactly the sentences, each section under its heading: nothing in it goes unverified.
        sentences: In order, at least one.
        notes: Says so when the limit of tokens came before the end, or when something written is no such sentence.
    """

    text: str
    sentences: tuple[WrittenSentence, ...]
    notes: tuple[str, ...]


def read_tokens(
    ids: Sequence[int], logprobs: Sequence[float], *, stopped: Stopped, decode: Callable[[Sequence[int]], str]
) -> Written:
    """Make sentences of tokens.

    Args:
        ids: T generated token ids, the end token not among them.
        logprobs: Natural-log probability of each.
        stopped: Why the generation stopped; after ``"length"`` a sentence without its full stop is removed, since
            half a sentence can say the opposite of the whole one.
        decode: Token ids → text.

    Returns:
        Text and sentences.

    Raises:
        InputError: Nothing readable was written (code ``empty_report``).
    """
    raw = decode(ids)
    spans = _locate(raw)
    if stopped == "length" and spans and _COMPLETE.search(raw) is None:
        spans.pop()
    if not spans:
        raise InputError("the model wrote no sentence about this image; have it reported by hand", code="empty_report")
    ends = [len(decode(ids[: count + 1])) for count in range(len(ids))]
    sentences = tuple(
        WrittenSentence(text, section, _mean(logprobs[bisect_right(ends, start) : bisect_left(ends, end) + 1]))
        for start, end, text, section in spans
    )
    text = _compose(sentences)
    left_out = stopped == "eos" and raw.casefold().split() != text.casefold().split()
    return Written(text, sentences, (*([_CUT] if stopped == "length" else []), *([_LEFT_OUT] if left_out else [])))


def read_finished(
    ids: Sequence[int], logprobs: Sequence[float], *, decode: Callable[[Sequence[int]], str], skip: int
) -> tuple[WrittenSentence, ...]:
    """Make sentences of the tokens of a text that still grows.

    Args:
        ids: T generated token ids so far.
        logprobs: Natural-log probability of each.
        decode: Token ids → text.
        skip: How many sentences are known already.

    Returns:
        The other sentences after which a next one has begun.
    """
    if len(_locate(decode(ids))) < skip + 2:
        return ()
    return read_tokens(ids, logprobs, stopped="eos", decode=decode).sentences[skip:-1]


def _compose(sentences: Sequence[WrittenSentence]) -> str:
    """Put each run of sentences under the heading of its section."""
    runs = groupby(sentences, key=lambda sentence: sentence.section)
    headed = (([f"{section.upper()}:"] if section else [], [item.text for item in run]) for section, run in runs)
    return " ".join(word for heading, texts in headed for word in (*heading, *texts))


def _locate(raw: str) -> list[tuple[int, int, str, str]]:
    """Start, end, text and section of each sentence; the splitter may have changed white space."""
    spans: list[tuple[int, int, str, str]] = []
    cursor = 0
    for sentence in split_sentences(raw):
        pattern = r"\s+".join(re.escape(word) for word in sentence.text.split())
        found = re.compile(pattern).search(raw, cursor)
        if found is None:
            raise RuntimeError("the sentence splitter gave a sentence that the text does not hold")
        cursor = found.end()
        spans.append((found.start(), cursor, sentence.text, sentence.section))
    return spans


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
