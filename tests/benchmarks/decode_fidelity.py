"""Which engines write what fp32 writes: an export's limit on labels, over a report for each condition of val studies.

A decoder in fewer bits writes other texts now and then. An export refuses it where the labels of less than .99 of its
study-observation pairs are those of fp32 (``trrg_export.parity.LIMITS``); so does a goal here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from decode_process import EngineFailed, EngineProcess
from tokenizers import Tokenizer

from trrg_export.parity import LIMITS
from trrg_sdk.labeler import OBSERVATIONS, label_report

LIMIT = LIMITS["int8"].label_agreement
Text = tuple[int, ...]


class Writes(Protocol):
    """What can be judged."""

    def texts(self) -> list[Text]:
        """Tokens of each report."""
        ...


class Fidelity(NamedTuple):
    """How near one engine's reports are to those of fp32.

    Attributes:
        identical: Reports with the same tokens.
        reports: All.
        labels: Share of study-observation pairs with the same state, 0 to 1.
    """

    identical: int
    reports: int
    labels: float

    @property
    def passes(self) -> bool:
        """Whether an export would take it."""
        return self.labels >= LIMIT


def compared(texts: Sequence[Text], wanted: Sequence[Text], tokenizer: Tokenizer) -> Fidelity:
    """Compare reports with those of fp32.

    Args:
        texts: Tokens of each report.
        wanted: Those of fp32.
        tokenizer: Of both.
    """
    states = [[label_report(tokenizer.decode(list(text))) for text in group] for group in (texts, wanted)]
    same = sum(got.get(name) == true.get(name) for got, true in zip(*states, strict=True) for name in OBSERVATIONS)
    identical = sum(got == true for got, true in zip(texts, wanted, strict=True))
    return Fidelity(identical, len(wanted), same / (len(wanted) * len(OBSERVATIONS)))


def judge(
    opened: Mapping[str, Callable[[], Writes]], reference: Callable[[], Writes], tokenizer: Tokenizer, *, threads: int
) -> tuple[dict[str, Fidelity], dict[str, str]]:
    """Let all engines write, each in a process of its own, one after the other.

    Args:
        opened: What opens each, by its name.
        reference: Opens fp32.
        tokenizer: Of all.
        threads: For each.

    Returns:
        What was found of each, and why others did not write.
    """
    wanted = _texts(reference, threads)
    judged, failed = dict[str, Fidelity](), dict[str, str]()
    for name, make in opened.items():
        try:
            judged[name] = compared(_texts(make, threads), wanted, tokenizer)
        except EngineFailed as error:
            failed[name] = str(error)
    return judged, failed


def _texts(make: Callable[[], Writes], threads: int) -> list[Text]:
    process = EngineProcess(make, threads=threads)
    try:
        texts: list[Text] = process.call("texts").result
        return texts
    finally:
        process.close()


def fidelity_table(judged: Mapping[str, Fidelity], failed: Mapping[str, str]) -> Iterator[str]:
    """Lines of a table."""
    yield f"| | texts identical to fp32's | labels that agree | an export's limit, {LIMIT:g} |"
    yield "|---|---|---|---|"
    for name, one in judged.items():
        verdict = "passed" if one.passes else "**missed**"
        yield f"| {name} | {one.identical} of {one.reports} | {one.labels:.4f} | {verdict} |"
    for name, reason in failed.items():
        yield f"| {name} | did not run: {reason} | | |"
