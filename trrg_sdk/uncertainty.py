"""How sure the model is of a report: what other texts, drawn by chance for the same image, say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trrg_sdk.labeler import OBSERVATIONS, State, label_report


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """How far drawn texts agree with a report. Agreement is no proof: all may be wrong alike.

    Attributes:
        samples: How many texts were drawn.
        sentences: For each sentence of the report, the share of texts that say the same about all its observations;
            None for a sentence without any.
        asserted: Observation → share of texts that say it is present.
        distinct: How many different texts came out.
    """

    samples: int
    sentences: tuple[float | None, ...]
    asserted: Mapping[str, float] = field(hash=False)
    distinct: int


def compare_texts(sentences: Sequence[Mapping[str, State]], texts: Sequence[str]) -> Uncertainty:
    """Hold the labels of a report's sentences against drawn texts.

    Args:
        sentences: Labels of each sentence of the report.
        texts: The drawn texts, at least one.
    """
    drawn = [label_report(text) for text in texts]
    return Uncertainty(
        samples=len(texts),
        sentences=tuple(_share(labels, drawn) if labels else None for labels in sentences),
        asserted={name: _share({name: "present"}, drawn) for name in OBSERVATIONS},
        distinct=len(set(texts)),
    )


def _share(labels: Mapping[str, State], drawn: Sequence[Mapping[str, State]]) -> float:
    return sum(all(text.get(name) == state for name, state in labels.items()) for text in drawn) / len(drawn)
