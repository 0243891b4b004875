"""Report grammar: from findings to the text of a report, and the prompts of the clues.

What the text says is exactly what the findings say: ``label_report(compose_report(findings))`` has the observations
of ``study_labels(findings)`` as present, no more and no less (``tests/train/test_grammar.py`` tries thousands).

Fields of the templates in ``phrases``: ``{np}`` the noun with article, severity, side and place; ``{sign}`` the same
without side and place, which ``{where}`` then says; ``{be}`` is or are; ``{adverb}`` the severity as an adverb;
``{Np}`` and ``{Sign}`` begin a sentence.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np

from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.data import phrases
from trrg_train.data.finding import KINDS, Finding

SHARES = (0.7, 0.18, 0.12)
"""How often the first, second and third wording of a list is taken."""

_LUNGS = frozenset({"Lung Opacity", "Consolidation", "Pneumonia", "Edema", "Atelectasis", "Lung Lesion"})
_PLEURA = frozenset({"Pneumothorax", "Pleural Effusion", "Pleural Other"})
_HEART = frozenset({"Cardiomegaly", "Enlarged Cardiomediastinum"})
_ORDER = {kind: rank for rank, kind in enumerate(phrases.WORDINGS)}


def compose_report(
    findings: Sequence[Finding],
    *,
    rng: np.random.Generator,
    view: str = "",
    unknown: frozenset[str] = frozenset(),
) -> str:
    """Write a report: what is there, then what is not, region by region.

    Args:
        findings: What the image shows; an empty side, place or severity is not written.
        rng: Chooses among wordings, and nothing else.
        view: ``"PA"``, ``"AP"`` or "". A bedside (AP) film without devices says that there are none.
        unknown: Observations about which nothing is known: neither asserted nor denied. What a finding asserts is
            known.

    Returns:
        ``FINDINGS: … IMPRESSION: …``

    Raises:
        ValueError: ``unknown`` holds a name that is no observation, or "No Finding" though nothing is found (then
            there would be nothing that the report could say).
    """
    if stray := unknown - set(OBSERVATIONS):
        raise ValueError(f"unknown must hold observations, got {', '.join(sorted(stray))}")
    if "No Finding" in unknown and not findings:
        raise ValueError('a report without findings says that there are none: take "No Finding" out of unknown')
    ordered = sorted(findings, key=lambda finding: _ORDER[finding.kind])
    return _Writer(ordered, rng=rng, deniable=_deniable(ordered, unknown)).write(bedside=view == "AP")


def prompts(observation: str) -> tuple[str, str]:
    """Positive and negative prompt of one of the 14 observations.

    Raises:
        KeyError: It is none of the 14.
    """
    return phrases.PROMPTS[observation]


def _deniable(findings: Sequence[Finding], unknown: frozenset[str]) -> frozenset[str]:
    """Observations that are known to be absent."""
    present = {observation for finding in findings for observation in KINDS[finding.kind]}
    return frozenset(OBSERVATIONS) - present - unknown - {"No Finding"}


class _Writer:
    """Writes one report."""

    def __init__(self, findings: Sequence[Finding], *, rng: np.random.Generator, deniable: frozenset[str]) -> None:
        """Keep the findings in the order of a report and what may be denied."""
        self.findings = findings
        self.rng = rng
        self.deniable = deniable

    def write(self, *, bedside: bool) -> str:
        """All sentences, then the impression."""
        sentences = [
            *self._devices(bedside),
            *self._lungs(),
            *self._pleura(),
            *self._heart(),
            *self._bones(),
        ]
        impression = self._impression()
        return f"FINDINGS: {' '.join(sentences or [self._choose(phrases.NOTHING)])} IMPRESSION: {impression}"

    def _choose(self, wordings: Sequence[str]) -> str:
        return str(wordings[self._index(len(wordings))])

    def _index(self, count: int) -> int:
        drawn = self.rng.random() * sum(SHARES[:count])
        return sum(drawn >= edge for edge in itertools.accumulate(SHARES[: count - 1]))

    def _assert(self, region: frozenset[str]) -> list[str]:
        """The sentences about the findings of a region."""
        return [
            _fill(self._choose(phrases.WORDINGS[finding.kind].sentences), finding)
            for finding in self.findings
            if region & set(KINDS[finding.kind])
        ]

    def _deny(self, observations: Sequence[str]) -> list[str]:
        """One sentence that denies those of the observations that may be denied."""
        items = [phrases.ITEM[name] for name in observations if name in self.deniable]
        listed = re.sub(r"(focal .*)focal ", r"\1", _join(items, "or"))
        wording = self._choose(phrases.DENY_LIST)
        return [wording.format(list=listed)] if items else []

    def _devices(self, bedside: bool) -> list[str]:
        denied = bedside and "Support Devices" in self.deniable
        return self._assert(frozenset({"Support Devices"})) or ([self._choose(phrases.NO_DEVICES)] if denied else [])

    def _lungs(self) -> list[str]:
        items = phrases.LUNG_ITEMS[self._index(len(phrases.LUNG_ITEMS))]
        if self.deniable >= _LUNGS:
            return [self._choose(phrases.CLEAR_LUNGS), *self._deny(items)]
        return [*self._assert(_LUNGS), *self._deny(("Lung Opacity", *items))]

    def _pleura(self) -> list[str]:
        items = phrases.PLEURA_ITEMS[self._index(len(phrases.PLEURA_ITEMS))]
        return [*self._assert(_PLEURA), *self._deny(items)]

    def _heart(self) -> list[str]:
        if self.deniable >= _HEART:
            return [self._choose(phrases.NORMAL_BOTH)]
        sentences = self._assert(_HEART)
        if "Cardiomegaly" in self.deniable:
            sentences.insert(0, self._choose(phrases.NORMAL_HEART))
        if "Enlarged Cardiomediastinum" in self.deniable:
            sentences.append(self._choose(phrases.NORMAL_MEDIASTINUM))
        return sentences

    def _bones(self) -> list[str]:
        denied = [self._choose(phrases.NORMAL_BONES)] if "Fracture" in self.deniable else []
        return self._assert(frozenset({"Fracture"})) or denied

    def _impression(self) -> str:
        named = [_summary(f) for f in self.findings if KINDS[f.kind] != ("Support Devices",)]
        if not named:
            return self._choose(phrases.NOTHING)
        parts = [named[:3], named[3:]]
        return " ".join(f"{_capital(_join(part, 'and'))}." for part in parts if part)


def _fill(template: str, finding: Finding) -> str:
    """Put a finding into a template."""
    wording = phrases.WORDINGS[finding.kind]
    severity = _severity(finding)
    plural = finding.side == "bilateral"
    noun_phrase = _noun_phrase([severity, *_side_and_place(finding)], wording.noun, wording.plural, plural=plural)
    sign = _noun_phrase([severity], wording.noun, wording.plural, plural=plural)
    if wording.sign:
        sign = _noun_phrase([severity, wording.sign], "opacity", "opacities", plural=plural)
    text = template.format(
        np=noun_phrase,
        Np=_capital(noun_phrase),
        sign=sign,
        Sign=_capital(sign),
        be="are" if plural else "is",
        where=_where(finding),
        adverb=phrases.ADVERB.get(finding.severity, ""),
    )
    return re.sub(r"\s+(?=[.,])", "", " ".join(text.split()))


def _summary(finding: Finding) -> str:
    """What the impression calls a finding, without an article: "small left pleural effusion"."""
    wording = phrases.WORDINGS[finding.kind]
    noun = (wording.plural if finding.side == "bilateral" else "") or wording.noun
    return " ".join(word for word in (_severity(finding), *_side_and_place(finding), noun) if word)


def _noun_phrase(before: Sequence[str], noun: str, plural_noun: str, *, plural: bool) -> str:
    words = [word for word in (*before, plural_noun if plural and plural_noun else noun) if word]
    if plural_noun and not plural:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    return " ".join(words)


def _severity(finding: Finding) -> str:
    words = phrases.WORDINGS[finding.kind].severity
    return words[phrases.SEVERITIES.index(finding.severity)] if words and finding.severity else ""


def _side_and_place(finding: Finding) -> tuple[str, str]:
    if not phrases.WORDINGS[finding.kind].sided:
        return "", ""
    return finding.side, "" if finding.kind in phrases.UNPLACED else phrases.ADJECTIVE.get(finding.place, "")


def _where(finding: Finding) -> str:
    if finding.side == "bilateral":
        return f"in both {phrases.PLURAL[finding.place]}"
    if not finding.side and not finding.place:
        return ""
    return f"in the {finding.side} {phrases.SINGULAR[finding.place]}"


def _join(items: Sequence[str], word: str) -> str:
    """Join none, one, two or more items: "", "a", "a or b", "a, b or c"."""
    return f" {word} ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
