"""Sections of a free-text chest report, as MIMIC-CXR and most hospitals write them.

A heading is a known one (``HEADINGS``) at the start of a line or of a sentence with a colon behind it, a known one in
capitals alone on its line, or anything in capitals with a colon at the start of a line ("PORTABLE CHEST:"), which
becomes ``OTHER``, or stays a part of the findings where it stands in them ("LUNGS:"). How the reports look: https://physionet.org/content/mimic-cxr/2.1.0/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

FINDINGS, IMPRESSION = "findings", "impression"
UNHEADED, OTHER = "", "other"

HEADINGS: Mapping[str, tuple[str, ...]] = {
    # A combined section cannot be taken apart again: it counts as findings.
    FINDINGS: (
        "findings",
        "finding",
        "findings and impression",
        "findings/impression",
        "findings / impression",
        "impression and findings",
    ),
    IMPRESSION: (
        "impression",
        "impressions",
        "final impression",
        "conclusion",
        "conclusions",
    ),
    "indication": (
        "indication",
        "indications",
        "clinical indication",
        "clinical information",
        "reason for exam",
        "reason for examination",
        "reason for this examination",
        "reason for study",
    ),
    "history": ("history", "clinical history", "patient history", "medical history"),
    "comparison": ("comparison", "comparisons", "comparison study", "prior study", "prior studies"),
    "technique": ("technique", "techniques", "procedure"),
    "examination": ("examination", "exam", "type of examination", "study"),
    "recommendation": ("recommendation", "recommendations", "recommendation(s)"),
    "notification": ("notification", "notifications", "communication"),
    "addendum": ("addendum", "final addendum"),
    # What a resident wrote before the final reading; the final text replaces it.
    "preliminary": ("wet read", "preliminary report", "provisional findings impression (pfi)"),
    UNHEADED: ("final report",),
}
"""Name of a section to its headings in lower case."""

_NAME_OF = {heading: name for name, headings in HEADINGS.items() for heading in headings}
_ABOUT_THE_IMAGE = frozenset({FINDINGS, IMPRESSION, UNHEADED, OTHER})
_NEVER_IMAGE = frozenset({"preliminary", "addendum", "notification", "recommendation"})


def _either(*, capitals: bool) -> str:
    words = sorted((h.upper() if capitals else h for h in _NAME_OF), key=len, reverse=True)
    return "|".join(r"[ \t]+".join(map(re.escape, word.split())) for word in words)


_HEADING = re.compile(
    rf"^[ \t]*(?P<line>(?i:{_either(capitals=False)}))[ \t]*:"
    rf"|^[ \t]*(?P<alone>{_either(capitals=True)})[ \t]*$"
    rf"|(?<=[.\s])(?P<within>(?i:{_either(capitals=False)}))[ \t]*:"
    r"|^[ \t]*(?P<other>[A-Z][A-Z0-9 ,()/&.'-]{2,60}):(?=\s)",
    re.MULTILINE,
)
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_RULE = re.compile(r"(?m)^[ \t]*_{10,}[ \t]*$")


@dataclass(frozen=True, slots=True)
class Section:
    """One section.

    Attributes:
        name: A key of ``HEADINGS``, ``OTHER`` for an unknown heading, ``UNHEADED`` before the first one.
        text: What stands under it, without the heading and outer white space; line breaks are kept.
    """

    name: str
    text: str


def split_sections(text: str) -> list[Section]:
    """Split a report at its headings.

    Args:
        text: A report as it lies in its file.

    Returns:
        The sections that have a text, in order; no word that is not part of a heading is lost. A heading that comes
        twice gives two sections.
    """
    plain = _RULE.sub("", text)
    starts = [(0, 0, UNHEADED), *_headings(plain)]
    ends = [start for start, _, _ in starts[1:]] + [len(plain)]
    sections = [Section(name, plain[body:end].strip()) for (_, body, name), end in zip(starts, ends, strict=True)]
    return [section for section in sections if section.text]


def extract_sections(text: str) -> dict[str, str]:
    """The text of each section by its name; sections of one name are joined by an empty line, in order.

    Args:
        text: A report as it lies in its file.

    Returns:
        Only sections that are there. See ``HEADINGS`` for the names.
    """
    found: dict[str, list[str]] = {}
    for section in split_sections(text):
        found.setdefault(section.name, []).append(section.text)
    return {name: "\n\n".join(texts) for name, texts in found.items()}


def findings_and_impression(text: str) -> tuple[str, str]:
    """What a report says about the image.

    Where it has neither heading, the last paragraph stands for the findings (see ``last_paragraph``). What an
    addendum, a preliminary reading or a recommendation says belongs to neither.

    Args:
        text: A report as it lies in its file.

    Returns:
        Findings and impression; each may be empty.
    """
    sections = extract_sections(text)
    findings, impression = sections.get(FINDINGS, ""), sections.get(IMPRESSION, "")
    if not findings and not impression:
        findings = last_paragraph(text)
    return findings, impression


def last_paragraph(text: str) -> str:
    """The last paragraph, when it can be about the image.

    Many reports have headings for the indication and the comparison and then, after an empty line, the findings
    without one: the last paragraph below such a heading counts when it is not the only one there.

    Args:
        text: A report as it lies in its file.

    Returns:
        The paragraph; empty where there is none.
    """
    sections = [section for section in split_sections(text) if section.name not in _NEVER_IMAGE]
    if not sections:
        return ""
    paragraphs = _PARAGRAPH.split(sections[-1].text)
    return paragraphs[-1].strip() if sections[-1].name in _ABOUT_THE_IMAGE or len(paragraphs) > 1 else ""


def headed_report(findings: str, impression: str) -> str:
    """``FINDINGS: … IMPRESSION: …``, the form that the model learns; an empty one is left out with its heading."""
    parts = ((FINDINGS, findings), (IMPRESSION, impression))
    return " ".join(f"{name.upper()}: {text}" for name, text in parts if text)


def _headings(text: str) -> Iterator[tuple[int, int, str]]:
    """Start of each heading, start of what follows it, name of its section."""
    current = UNHEADED
    for match in _HEADING.finditer(text):
        words = match[match.lastgroup or 0]
        name = _NAME_OF.get(" ".join(words.lower().split()), OTHER)
        # Within a line "findings:" is a word of a sentence, "Findings:" a heading.
        is_word = match.lastgroup == "within" and words[0].islower()
        if not is_word and (name, current) != (OTHER, FINDINGS):
            current = name
            yield match.start(), match.end(), name
