"""The Indiana University reports as ``iu_decoder.py`` reads them: findings, and what is known of a study beside them.

The file is no part of the project (CC BY-NC-ND 4.0): nothing of it is copied, and what is made of it is never shipped.
A study's condition is what our labeler finds in its report and the MeSH headings that people gave it. Headings hold
more than 14 labels do, as an image would: with labels alone a small decoder writes eleven texts about 150 studies.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trrg_sdk.labeler import OBSERVATIONS, label_report
from trrg_train.data.cleaning import clean_report

RARE = 3
"""Train studies that a part of a heading must stand in to be known."""


@dataclass(frozen=True)
class IuStudy:
    """A study.

    Attributes:
        text: Its findings, cleaned as for training.
        labels: ``"<observation>: <state>"`` of what the report mentions, in the order of the observations.
        headings: The parts of each MeSH heading, such as ``("Opacity", "lung", "base", "left")``.
    """

    text: str
    labels: tuple[str, ...]
    headings: tuple[tuple[str, ...], ...]


def read_studies(reports: Path, split: str) -> list[IuStudy]:
    """Read one part of R2Gen's split; reports without findings are left out.

    Args:
        reports: ``iu_reports.jsonl.gz``.
        split: ``"train"`` or ``"val"``.
    """
    with gzip.open(reports, "rt", encoding="utf-8") as lines:
        records = [record for line in lines if (record := json.loads(line))["r2gen_split"] == split]
    return [_study(record["findings"], record["mesh_major"]) for record in records if record["findings"].strip()]


def _study(findings: str, headings: Iterable[str]) -> IuStudy:
    text = clean_report(findings)
    labels = tuple(f"{name}: {state}" for name, state in label_report(text).items())
    return IuStudy(text, labels, tuple(tuple(heading.split("/")) for heading in headings))


def known_words(studies: Sequence[IuStudy]) -> dict[str, int]:
    """Number what conditions are made of; what is rare in train stays unknown.

    Args:
        studies: Of train.
    """
    counts = Counter(word for study in studies for words in _positions(study) for word in set(words))
    return {word: number for number, word in enumerate(sorted(word for word in counts if counts[word] >= RARE))}


def condition(study: IuStudy, known: dict[str, int]) -> tuple[tuple[int, ...], ...]:
    """What the decoder is told about a study: known words of each position of the prompt, without empty ones."""
    numbers = (tuple(known[word] for word in words if word in known) for words in _positions(study))
    return tuple(position for position in numbers if position)


def about(study: IuStudy) -> tuple[int, int]:
    """Observations that a condition asserts and denies, one bit each, as clues would say it."""
    asserted, denied = (
        sum(1 << bit for bit, name in enumerate(OBSERVATIONS) if f"{name}: {state}" in study.labels)
        for state in ("present", "absent")
    )
    return asserted, denied


def _positions(study: IuStudy) -> list[tuple[str, ...]]:
    return [*((label,) for label in study.labels), *study.headings]
