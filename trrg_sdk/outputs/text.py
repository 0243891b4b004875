"""Report → plain text for a person to read: every sentence with what supports it. Holds no UIDs."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable
from itertools import groupby

from trrg_sdk.reading import Reading
from trrg_sdk.report import ClueScore, Evidence, GateReason, HeatPeak, Omission, Report, Sentence

NAME = "text"
EXTENSION = ".txt"
SHOWS_IMAGE = False

BANNER = "DRAFT, written by a program. A radiologist has to check every sentence against the image."
_WIDTH = 100
_MARKS = {
    "supported": "supported",
    "contradicted": "CONTRADICTED",
    "unsupported": "UNSUPPORTED",
    "not_checkable": "not checkable",
}


def render(reading: Reading) -> bytes:
    """UTF-8 text with Unix line ends, for a fixed-width font."""
    report = reading.report
    blocks = [
        _banner(report),
        *_sections(report.sentences),
        _block("PERCEIVED, BUT NOT SAID", map(describe_clue, report.omissions)),
        _clue_table(report),
        _block("NOTES", (*report.notes, *map(_gate_reason, report.gate.reasons))),
        provenance_line(report),
    ]
    return ("\n\n".join(block for block in blocks if block) + "\n").encode()


def unavailable_reason() -> None:
    """Nothing is needed."""


def printable(text: str) -> str:
    """The text without control characters: a byte-level vocabulary can spell them, and a terminal would obey.

    Spaces of other scripts, such as the wide one of Japanese names, stay.
    """
    if text.isprintable():
        return text
    keeps = (sign.isprintable() or unicodedata.category(sign) == "Zs" for sign in text)
    return "".join(sign if kept else "\N{REPLACEMENT CHARACTER}" for sign, kept in zip(text, keeps, strict=True))


def warnings(report: Report) -> list[str]:
    """What makes this report worth less than others: forced clues, and what of the gate was overridden."""
    forced = any(clue.forced for clue in report.clues)
    said = ["Clue scores were forced by the caller: this text does not describe the image."] if forced else []
    for reason in report.gate.overridden:
        said.append(f"The gate refused this image, and the caller overrode it ({reason.code}): {reason.message}")
    return said


def provenance_line(report: Report) -> str:
    """What made the report, in one line."""
    made = report.provenance
    used = ", ".join(image.view or "view not given" for image in report.images if image.used)
    parts = (
        f"bundle {made.bundle_id} (manifest {made.manifest_sha256[:12]})",
        f"device {made.device}",
        made.precision,
        f"trrg-sdk {made.sdk_version}",
        f"image {used} of {len(report.images)}",
        f"{report.timings_ms.get('total', 0.0):.0f} ms",
    )
    return "Made by: " + " | ".join(parts)


def describe_clue(clue: Evidence | Omission) -> str:
    """A clue in one line: its probability and threshold, and where it is strongest when it is present."""
    forced = " forced" if clue.forced else ""
    present = clue.probability >= clue.threshold
    where = _where(clue.heat_peak) if clue.heat_peak and present else ""
    return f"{printable(clue.clue)} {clue.probability:.2f}{forced} (threshold {clue.threshold:.2f}){where}"


def _banner(report: Report) -> str:
    lines = [BANNER]
    for line in (report.provenance.intended_use, *warnings(report)):
        lines += _wrapped(line)
    rule = "=" * _WIDTH
    return "\n".join((rule, *lines, rule))


def _sections(sentences: Iterable[Sentence]) -> list[str]:
    grouped = groupby(sentences, key=lambda sentence: sentence.section)
    return [_block((section or "report").upper(), map(_sentence, members)) for section, members in grouped]


def _block(title: str, lines: Iterable[str]) -> str:
    body = [part for line in lines for part in _wrapped(line, first="  ", others="    ")]
    return "\n".join((title, *body)) if body else ""


def _wrapped(line: str, *, first: str = "", others: str = "") -> list[str]:
    """Break a line; what fits as it is, as nearly all does, is not taken apart into words for it."""
    if len(first) + len(line) <= _WIDTH and line.isprintable() and line and line == line.strip():
        return [first + line]
    return textwrap.wrap(line, _WIDTH, initial_indent=first, subsequent_indent=others)


def _sentence(sentence: Sentence) -> str:
    support = ", ".join(map(_support, sentence.evidence))
    return f"{printable(sentence.text)} [{_MARKS[sentence.verdict]}{': ' if support else ''}{support}]"


def _support(evidence: Evidence) -> str:
    return f"{evidence.clue} {evidence.probability:.2f}{' forced' if evidence.forced else ''}"


def _where(peak: HeatPeak) -> str:
    return f", strongest in row {peak.row + 1} of {peak.rows}, column {peak.column + 1} of {peak.columns}"


def _clue_table(report: Report) -> str:
    width = max((len(name) for name in report.clues.names), default=0)
    rows = (_clue(clue, width) for clue in report.clues)
    return "\n".join((f"{'CLUES':<{width + 2}}  probability  threshold", *rows)) if len(report.clues) else ""


def _clue(clue: ClueScore, width: int) -> str:
    words = " ".join(word for word, said in (("present", clue.present), ("(forced)", clue.forced)) if said)
    return f"  {clue.name:<{width}}  {clue.probability:11.3f}  {clue.threshold:9.3f}  {words}".rstrip()


def _gate_reason(reason: GateReason) -> str:
    return f"{reason.message} {reason.action}"
