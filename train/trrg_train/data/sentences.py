"""Sentences of the training reports and the sampler that answers the flood of denials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trrg_sdk.labeler import OBSERVATIONS, label_report, label_sentence, split_sentences
from trrg_train.losses import Relation


@dataclass(frozen=True)
class LabelledSentence:
    """A sentence and what it says.

    Attributes:
        text: The sentence.
        states: int8 (14,): 1 asserts, -1 denies, 0 does not mention or is not sure.
    """

    text: str
    states: NDArray[np.int8]

    @property
    def asserts(self) -> bool:
        """True when it asserts a disease or a device."""
        rest = np.delete(self.states, OBSERVATIONS.index("No Finding"))
        return bool((rest > 0).any())


def labelled_sentences(report: str) -> list[LabelledSentence]:
    """Split a report and label each sentence."""
    return [LabelledSentence(span.text, _states(label_sentence(span.text))) for span in split_sentences(report)]


def labelled_report(report: str) -> list[LabelledSentence]:
    """Take a whole report for one sentence, so that it can stand where :func:`labelled_sentences` does."""
    return [LabelledSentence(report, _states(label_report(report)))]


def report_states(labels: Mapping[str, bool]) -> NDArray[np.int8]:
    """Study labels as int8 (14,): 1 present, -1 absent, 0 not known."""
    return np.array([0 if o not in labels else 1 if labels[o] else -1 for o in OBSERVATIONS], dtype=np.int8)


class SentenceSampler:
    """Draws sentences of a report, asserting ones more often than denying ones."""

    def __init__(self, *, assertion_ratio: float, count: int) -> None:
        """Set how much likelier an assertion is, and how many sentences a draw gives."""
        self.assertion_ratio = assertion_ratio
        self.count = count

    def draw(self, sentences: Sequence[LabelledSentence], rng: np.random.Generator) -> list[LabelledSentence]:
        """Draw without replacement; fewer when the report is shorter."""
        weights = np.array([self.assertion_ratio if s.asserts else 1.0 for s in sentences])
        count = min(self.count, len(sentences))
        chosen = rng.choice(len(sentences), size=count, replace=False, p=weights / weights.sum())
        return [sentences[i] for i in chosen]


def relations(studies: Tensor, sentences: Tensor, own: Tensor) -> Tensor:
    """Say how each sentence of a batch stands to each image.

    An image's own sentence is positive, and so is another report's sentence that asserts what this report asserts.
    Denials that agree, and whatever mentions what is not known of the image, are ignored: they are true of it or
    may be. A sentence that contradicts the report is negative, and hard when it asserts what the report denies.

    Args:
        studies: int8 (B, 14), see :func:`report_states`.
        sentences: int8 (S, 14), see :class:`LabelledSentence`.
        own: bool (B, S), True where the sentence is from the image's report.

    Returns:
        int64 (B, S) of :class:`~trrg_train.losses.Relation`.
    """
    product = studies[:, None, :] * sentences[None, :, :]  # (B, S, 14)
    mentioned, asserted = sentences != 0, sentences > 0  # (S, 14)
    agrees = ((product == 1) == mentioned).all(-1) & mentioned.any(-1)
    relation = torch.full_like(own, int(Relation.IGNORED), dtype=torch.int64)
    relation[agrees & asserted.any(-1)] = int(Relation.POSITIVE)
    relation[(product == -1).any(-1)] = int(Relation.NEGATIVE)
    relation[((product == -1) & asserted).any(-1)] = int(Relation.HARD_NEGATIVE)
    relation[own] = int(Relation.POSITIVE)
    return relation


def _states(labels: Mapping[str, str]) -> NDArray[np.int8]:
    value = {"present": 1, "absent": -1, "uncertain": 0}
    return np.array([value[labels[o]] if o in labels else 0 for o in OBSERVATIONS], dtype=np.int8)
