"""The losses of stage 1; the consistency loss of stage 2 lies beside its heads in ``models``."""

from __future__ import annotations

import enum
import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from trrg_train.distributed import whole_mean


class Relation(enum.IntEnum):
    """How a sentence stands to an image."""

    IGNORED = -1
    NEGATIVE = 0
    POSITIVE = 1
    HARD_NEGATIVE = 2


def sentence_contrast(
    image: Tensor, sentence: Tensor, relation: Tensor, *, temperature: float, hard_negative_weight: float
) -> Tensor:
    """InfoNCE with several positives, image to sentence and sentence to image.

    Args:
        image: (B, De), unit norm.
        sentence: (S, De), unit norm.
        relation: int64 (B, S) of :class:`Relation`; what is ignored enters neither numerator nor denominator.
        temperature: Similarities are divided by it.
        hard_negative_weight: How often a hard negative counts in the denominator.

    Returns:
        A scalar: the mean of both directions over rows that have a positive.
    """
    logits = image @ sentence.t() / temperature  # (B, S)
    hard = (relation == Relation.HARD_NEGATIVE) * math.log(hard_negative_weight)
    logits = (logits + hard).masked_fill(relation == Relation.IGNORED, -torch.inf)
    positive = relation == Relation.POSITIVE
    return 0.5 * (_one_way(logits, positive) + _one_way(logits.t(), positive.t()))


def _one_way(logits: Tensor, positive: Tensor) -> Tensor:
    """Mean over rows of -log(sum over positives / sum over all)."""
    rows = positive.any(1)
    if not bool(rows.any()):
        return logits.new_zeros(())
    logits, positive = logits[rows], positive[rows]
    numerator = torch.logsumexp(logits.masked_fill(~positive, -torch.inf), dim=1)
    return (torch.logsumexp(logits, dim=1) - numerator).mean()


def prompt_contrast(logits: Tensor, labels: Tensor, *, positive_weight: Tensor) -> Tensor:
    """Pull an image nearer to "there is X" than to "there is no X" where X is present, and the reverse.

    A softmax over two similarities is the sigmoid of their difference, so this is a class-balanced cross entropy.

    Args:
        logits: (B, C), uncalibrated clue logits.
        labels: (B, C), 1 present, 0 absent, NaN not known (left out).
        positive_weight: (C,), weight of a present one.

    Returns:
        A scalar, see :func:`~trrg_train.distributed.whole_mean`.
    """
    losses = binary_cross_entropy_with_logits(
        logits, labels.nan_to_num(0.0), pos_weight=positive_weight, reduction="none"
    )
    return whole_mean(losses, ~torch.isnan(labels))
