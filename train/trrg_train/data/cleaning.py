"""Cleaning of report text: our own for training, R2Gen's for scores that are to be compared with published ones."""

from __future__ import annotations

import re

# At the start, after a line break or after a full stop: "fracture of rib 7. No effusion" holds no list number.
_LIST_NUMBER = re.compile(
    r"(?:^|(?<=[.!?:;])\s+|\n)\s*(?:(?:\d{1,2}[.)]|[-*•])\s+(?=\D|\d+[.)]\s|[\d.]+ ?[cm]m\b)|\d{1,2}[.)](?=[A-Za-z]))+"
)
_WORD = re.compile(r"[a-z0-9]+")
_BLANK = re.compile(r"_{2,}")
_PARAGRAPH = re.compile(r"\n\s*\n")
_UNENDED = re.compile(r"[^\s.!?:;,]$")

# What R2Gen deletes from a sentence. Its character class holds ":-[", which is a range: so "<", "=", ">" and "@" go
# as well, and the hyphen stays. Capitals, which the range holds too, are gone by then.
_R2GEN_DELETED = str.maketrans("", "", ".,?;*!%^&_+():<=>@[]{}")
_R2GEN_QUOTES = str.maketrans("", "", "\"/\\'")


def collapse_space(text: str) -> str:
    """Every run of white space, line breaks included, becomes one space; none at the ends."""
    return " ".join(text.split())


def comparable(text: str) -> str:
    """Words and numbers in lower case with one space between: what makes two reports the same, everywhere here."""
    return " ".join(_WORD.findall(text.lower()))


def shorten_blanks(text: str) -> str:
    """Every run of underscores, MIMIC-CXR's mark of a removed date or name, becomes ``___``."""
    return _BLANK.sub("___", text)


def end_paragraphs(text: str) -> str:
    """Give each paragraph its full stop, so that joining the lines does not join two sentences."""
    return "\n\n".join(_ended(part) for part in _PARAGRAPH.split(text.strip()))


def drop_list_numbers(text: str) -> str:
    """Leave out list numbers ("1. ", "2) ") and bullets where an item can begin; the item before gets a full stop."""
    items = [item.strip() for item in _LIST_NUMBER.split(text)]
    kept = [item for item in items if item]
    return " ".join([*map(_ended, kept[:-1]), *kept[-1:]])


def clean_report(text: str) -> str:
    """Our cleaning, for training: one line, no list numbers, short blanks; case and punctuation stay.

    Args:
        text: Findings, an impression or both, as they lie in their file.
    """
    return collapse_space(shorten_blanks(drop_list_numbers(end_paragraphs(text))))


def clean_report_iu_xray(report: str) -> str:
    """R2Gen's cleaning of IU X-ray: lower case, sentences between " . ", no other punctuation but the hyphen.

    Behaves as ``Tokenizer.clean_report_iu_xray`` of https://github.com/cuhksz-nlp/R2Gen does: the list numbers 1 to 5
    go, an empty sentence stays as an empty place between two full stops. One exception: there a run of more than
    eight full stops is not shortened to one.

    Args:
        report: Findings as they stand in ``annotation.json``.
    """
    return _r2gen_sentences(_squeeze(report, "."))


def clean_report_mimic_cxr(report: str) -> str:
    """R2Gen's cleaning of MIMIC-CXR: as that of IU X-ray, with line breaks and runs of spaces and blanks joined first.

    Behaves as ``Tokenizer.clean_report_mimic_cxr`` of https://github.com/cuhksz-nlp/R2Gen does, for runs of up to 64.

    Args:
        report: Findings as they stand in ``annotation.json``.
    """
    text = report.replace("\n", " ")
    for character in "_ .":
        text = _squeeze(text, character)
    return _r2gen_sentences(text)


def _squeeze(text: str, character: str) -> str:
    return re.sub(f"{re.escape(character)}{{2,}}", character, text)


def _r2gen_sentences(text: str) -> str:
    text = text.replace("1. ", "")  # also the end of "11. "
    for before in (". ", " "):  # first all four behind a full stop, then all four elsewhere
        for number in "2345":
            text = text.replace(f"{before}{number}. ", ". ")
    sentences = text.strip().lower().split(". ")
    return " . ".join(s.translate(_R2GEN_QUOTES).strip().translate(_R2GEN_DELETED) for s in sentences) + " ."


def _ended(text: str) -> str:
    return f"{text}." if _UNENDED.search(text) else text
