"""Sentence labeler: what a sentence of a report says about the 14 observations.

Words are looked up in the tables of ``trrg_sdk.label_rules``; one pass from left to right then carries denials and
doubts along lists until something ends them. No model, no dependency; a sentence takes a few microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trrg_sdk import label_rules as rules
from trrg_sdk.label_rules import Item
from trrg_sdk.report import State as State  # offered here too: it is what the labels are made of

OBSERVATIONS: tuple[str, ...] = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
"""The CheXpert set in the order that every array of 14 values has (design section 6)."""

NO_FINDING = "No Finding"
_NOT_DISEASES = frozenset({NO_FINDING, "Support Devices"})
_STRENGTH: Mapping[State, int] = {"absent": 0, "uncertain": 1, "present": 2}
_OPPOSITE: Mapping[State, State] = {"present": "absent", "absent": "present", "uncertain": "uncertain"}

_TOKEN = re.compile(r"[a-z']+|[,;/]")
_HEADING = re.compile(
    r"(?im)(?:^|(?<=[.\s]))("
    + "|".join(sorted(rules.NOT_THE_IMAGE | rules.FINDINGS | rules.IMPRESSION, key=len, reverse=True))
    + r")\s*:"
)
_END = re.compile(r"[.!?]+(?=\s|\Z|[A-Z]|\d+[.)]\s)|\n\s*\n|\n(?=\s*(?:[-*•]|\d+[.)])\s)")
_MARKER = re.compile(r"\s*(?:(?:\d{1,2}[.)]|[-*•])\s*)?(?=\D|\Z)")
_LAST_WORD = re.compile(r"[\w.]+\Z")


@dataclass(frozen=True, slots=True)
class SentenceSpan:
    """A sentence of a report.

    Attributes:
        text: As written, without list number and heading.
        section: ``"findings"``, ``"impression"`` or "" before any heading.
    """

    text: str
    section: Literal["findings", "impression", ""]


def split_sentences(text: str) -> list[SentenceSpan]:
    """Split a report into sentences.

    A full stop in a number or after an abbreviation ends nothing; list numbers and headings are left out, and so is
    all that stands under a heading that is not about the image (indication, history, comparison, technique).

    Args:
        text: A report, with or without headings such as ``FINDINGS:``.

    Returns:
        In order; an empty list when there is no word.
    """
    spans: list[SentenceSpan] = []
    pieces = _HEADING.split(text)
    for heading, body in zip(["", *pieces[1::2]], pieces[::2], strict=True):
        name = heading.lower()
        if name not in rules.NOT_THE_IMAGE:
            section = _section(name)
            spans.extend(SentenceSpan(sentence, section) for sentence in _sentences(body))
    return spans


def label_sentence(sentence: str) -> dict[str, State]:
    """Say what one sentence says.

    "No Finding" is present when the sentence calls the study normal ("no acute cardiopulmonary abnormality",
    "normal chest") and asserts nothing, absent when it calls it abnormal.

    Args:
        sentence: One sentence, without its heading.

    Returns:
        Observation → state, only for what is mentioned.
    """
    words = _TOKEN.findall(sentence.lower())
    items = rules.find_phrases(words)
    labels = _Scope(words, items).labels() if items else {}
    if labels and sentence.rstrip().endswith("?"):
        return {name: "uncertain" if state == "present" else state for name, state in labels.items()}
    return labels


def label_report(text: str) -> dict[str, State]:
    """Say what a whole report says.

    Present wins over uncertain, uncertain over absent. "No Finding" follows from the rest when any disease is
    mentioned: absent when one is present, else uncertain when one is uncertain, else (all denied) present; without
    any, it is what the sentences say. Support devices are no disease.

    Args:
        text: A report, with or without headings.

    Returns:
        Observation → state, only for what is mentioned, in the order of ``OBSERVATIONS``.
    """
    merged: dict[str, State] = {}
    for span in split_sentences(text):
        _merge(merged, label_sentence(span.text).items())
    diseases = {state for name, state in merged.items() if name not in _NOT_DISEASES}
    if diseases:
        merged[NO_FINDING] = _OPPOSITE[max(diseases, key=_STRENGTH.__getitem__)]
    return {name: merged[name] for name in OBSERVATIONS if name in merged}


def _section(heading: str) -> Literal["findings", "impression", ""]:
    return "findings" if heading in rules.FINDINGS else "impression" if heading in rules.IMPRESSION else ""


def _sentences(body: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(body):
        if not _is_abbreviation(body[start : end.start()]):
            yield from _clean(body[start : end.end()])
            start = end.end()
    yield from _clean(body[start:])


def _is_abbreviation(before: str) -> bool:
    """True where a full stop after this text ends no sentence: after an abbreviation, an initial, a list number."""
    word = _LAST_WORD.search(before)
    if word is None:
        return False
    last = word.group()
    alone = before.strip() == last
    return last.lower() in rules.ABBREVIATIONS or (alone and last.isdigit() and len(last) <= 2)


def _clean(piece: str) -> Iterator[str]:
    marker = _MARKER.match(piece)
    text = piece[marker.end() if marker else 0 :].strip()
    if any(character.isalpha() for character in text):
        yield text


def _merge(into: dict[str, State], states: Iterable[tuple[str, State]]) -> None:
    for name, state in states:
        known = into.get(name)
        if known is None or _STRENGTH[state] > _STRENGTH[known]:
            into[name] = state


@dataclass(slots=True)
class _Mention:
    """Observations that were named together, and what holds of them so far."""

    names: tuple[str, ...]  # "scar" or "other" where it is none of the 14
    state: State
    kind: str
    link: str = ""  # what joins it to the mention before: "list", ",", "with" or nothing


class _Scope:
    """Walks over the found phrases and carries denials and doubts along."""

    def __init__(self, words: Sequence[str], items: Sequence[Item]) -> None:
        """Walk over all items of one sentence."""
        self.words = words
        self.items = items
        self.mentions: list[_Mention] = []
        self.polarity: State | None = "present"  # None: what follows is not about the image
        self.segment = 0  # the first mention that a cue may reach back to
        self.pending: list[str] = []  # subjects that wait for their predicate
        self.recalled: list[str] = []  # the last subjects, for "the lungs are large but clear"
        self.forward = ""  # a predicate that waits for its subject
        self.reach = 0  # the last word at which an unusual predicate still finds its subject
        self.verb = False
        self.listing = False  # a list of differential diagnoses: commas end nothing
        self.steady = False  # "no change in": a list with "or" doubts nothing
        self.alternative = ""  # "or" or "versus" where the next mention is an alternative to the last
        self.link = ""  # what stands between the last mention and the next
        for index, item in enumerate(items):
            handle = _HANDLERS.get(item.kind)
            if handle is not None:
                handle(self, index, item)

    def labels(self) -> dict[str, State]:
        """Merge the mentions."""
        merged: dict[str, State] = {}
        for mention in self.mentions:
            if mention.kind == "abnormality":
                _merge(merged, [(NO_FINDING, _OPPOSITE[mention.state])])
            elif mention.kind == "mention" or (mention.kind == "deny only" and mention.state == "absent"):
                _merge(merged, [(name, mention.state) for name in mention.names])
        if NO_FINDING in merged and any(s != "absent" for n, s in merged.items() if n not in _NOT_DISEASES):
            del merged[NO_FINDING]
        return merged

    def mention(self, index: int, item: Item) -> None:
        """An observation is named."""
        if self.polarity is None:
            return
        state = self.polarity
        before = self.mentions[-1] if self.alternative and self.mentions else _Mention(item.value, state, "")
        differ = before.names != item.value and not {*before.names, *item.value} <= rules.ONE_FINDING
        if state == "present" and (differ or self.alternative == "versus"):
            state = "uncertain"
            before.state = state if before.state == "present" else before.state
        if item.kind != "other":
            self.pending, self.recalled = [], []
        self.mentions.append(_Mention(item.value, state, item.kind, self.link))
        self.alternative = self.link = ""

    def subject(self, index: int, item: Item) -> None:
        """A body part is named; a predicate may stand before it."""
        if self.forward != "normal" and item.start > self.reach:
            self.forward = ""
        if self.forward:
            self._say(self.forward, item.value[0])
        else:
            self.pending.append(item.value[0])

    def predicate(self, index: int, item: Item) -> None:
        """Something is normal, enlarged, borderline or neither: of the subjects before, else of those to come."""
        value = item.value[0]
        before = self.items[index - 1].kind if index else ""
        following = self.items[index + 1] if index + 1 < len(self.items) else item
        near = following.kind if following.start - item.end <= 1 else ""
        if value == "borderline" and near == "mention":
            self.doubt(index, item)
        attributive = near == "subject" and before not in ("verb", "subject")
        after = self.words[item.end] if item.end < len(self.words) else ","
        recalled = before in ("join", "break") and (value != "enlarged" or after in rules.GOES_ON)
        subjects = self.pending or (self.recalled if recalled else [])
        if value == "normal" and before == "deny" and self.items[index - 1].end == item.start:
            pass  # "not clear" says neither
        elif subjects and not attributive:
            for subject in subjects:
                self._say(value, subject)
        else:
            self.forward, self.reach = value, item.end + 1
        self._forget_subjects()

    def _forget_subjects(self) -> None:
        self.recalled, self.pending = self.pending or self.recalled, []

    def _say(self, predicate: str, subject: str) -> None:
        """Note what a predicate says of a subject."""
        if self.polarity is None:
            return
        state: State = self.polarity
        if predicate == "normal" and subject == "study":
            self.mentions.append(_Mention((NO_FINDING,), "absent", "abnormality"))
        elif predicate == "normal" and subject in rules.WHEN_NORMAL:
            self.mentions.append(_Mention(rules.WHEN_NORMAL[subject], "absent", "mention"))
        elif predicate in ("enlarged", "borderline") and subject in rules.WHEN_ENLARGED:
            state = "uncertain" if predicate == "borderline" and state == "present" else state
            self.mentions.append(_Mention(rules.WHEN_ENLARGED[subject], state, "mention"))

    def deny(self, index: int, item: Item) -> None:
        """What follows is denied."""
        self.polarity, self.forward = "absent", ""

    def doubt(self, index: int, item: Item) -> None:
        """What follows is uncertain, unless it is denied already; as the last word, what stood before."""
        if item.end == len(self.words) and self.mentions:
            self._reach_back("uncertain", self._last_list())
        elif self.polarity == "present":
            self.polarity = "uncertain"

    def doubt_surely(self, index: int, item: Item) -> None:
        """What follows is uncertain, denied or not ("cannot exclude")."""
        self.polarity = "uncertain"

    def doubt_list(self, index: int, item: Item) -> None:
        """What follows is uncertain to the end ("differential diagnosis includes")."""
        self.polarity, self.listing = "uncertain", True

    def deny_before(self, index: int, item: Item) -> None:
        """What stood before is denied; at the beginning of a phrase, what follows ("resolved effusion").

        "deny last" denies only the list that stood last ("atelectasis, pneumonia less likely").
        """
        last = item.kind == "deny last"
        opening = last or not index or self.items[index - 1].kind in ("join", "there")
        if opening and index + 1 < len(self.items) and self.items[index + 1].kind == "mention":
            self.deny(index, item)
        else:
            self._reach_back("absent", self._last_list() if last else self.mentions[self.segment :])

    def doubt_before(self, index: int, item: Item) -> None:
        """The list that stood last is uncertain; before any mention, all that follows."""
        self.listing = self.listing or not self.mentions
        self._reach_back("uncertain", self._last_list())

    def _last_list(self) -> list[_Mention]:
        """The last mention and those that "and" or "or" tie to it; commas count once such a word closes the list."""
        start, closed = len(self.mentions) - 1, False
        while start > self.segment:
            link = self.mentions[start].link
            closed = closed or link == "list"
            if not (link == "list" or (link == "," and closed)):
                break
            start -= 1
        return self.mentions[max(start, 0) :]

    def _reach_back(self, state: State, reached: list[_Mention]) -> None:
        reached = reached or self.mentions[-1:]
        for mention in reached:
            mention.state = state
        if not reached:
            self.polarity = state

    def skip(self, index: int, item: Item) -> None:
        """What follows is history or a question, not the image."""
        self.polarity = None

    def alternatives(self, index: int, item: Item) -> None:
        """What is named before and what comes next exclude each other; a slash gives one finding two names."""
        self.link = "list"
        if item.kind != "slash":
            self.alternative = "" if self.steady else item.kind
        if item.kind == "versus" and self.mentions and self.mentions[-1].state == "present":
            self.mentions[-1].state = "uncertain"  # whatever it is weighed against

    def verbs(self, index: int, item: Item) -> None:
        """A statement is complete up to here; after the next comma another may begin."""
        self.verb = True

    def no_change(self, index: int, item: Item) -> None:
        """What follows is there, all of it."""
        self.steady = True

    def new_clause(self, index: int, item: Item) -> None:
        """Nothing reaches over this word."""
        self.polarity, self.forward, self.alternative, self.verb, self.steady = "present", "", "", False, False
        self.segment = len(self.mentions)
        self._forget_subjects()

    def join(self, index: int, item: Item) -> None:
        """A list goes on, or something new begins."""
        if self.polarity != "present" and self._ends_scope(index, item):
            self.polarity = "present"
        self.link = rules.LINKS.get(self.words[item.start], "list")
        if self.verb:
            self.segment, self.verb, self.forward = len(self.mentions), False, ""
            self._forget_subjects()

    def _ends_scope(self, index: int, item: Item) -> bool:
        word = self.words[item.start]
        if self.polarity is None:
            return word != "and"
        rest = self.words[item.end :]
        if "or" in rest or "nor" in rest or self.listing:
            return False
        if self.polarity == "uncertain" and word != "and":
            return True
        following = self.items[index + 1] if index + 1 < len(self.items) else None
        new = following is not None and following.start == item.end and following.kind in ("doubt", "there")
        return new or (bool(rest) and rest[0] in rules.STARTERS)


_HANDLERS: Mapping[str, Callable[[_Scope, int, Item], None]] = {
    "mention": _Scope.mention,
    "other": _Scope.mention,
    "deny only": _Scope.mention,
    "abnormality": _Scope.mention,
    "subject": _Scope.subject,
    "predicate": _Scope.predicate,
    "deny": _Scope.deny,
    "deny before": _Scope.deny_before,
    "deny last": _Scope.deny_before,
    "doubt": _Scope.doubt,
    "doubt surely": _Scope.doubt_surely,
    "doubt list": _Scope.doubt_list,
    "doubt before": _Scope.doubt_before,
    "skip": _Scope.skip,
    "no change": _Scope.no_change,
    "break": _Scope.new_clause,
    "there": _Scope.new_clause,
    "join": _Scope.join,
    "or": _Scope.alternatives,
    "versus": _Scope.alternatives,
    "slash": _Scope.alternatives,
    "verb": _Scope.verbs,
}
