"""The clue bank: names, prompts, calibration and threshold of each clue."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trrg_train.models.fusion import ClueInputs
from trrg_train.models.tokenizer import pad_batch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from trrg_train.models.perceiver import Perceiver


@dataclass(frozen=True)
class BankedClue:
    """One clue.

    Attributes:
        name: An observation of the CheXpert set, or a site's own name.
        positive: Prompt of its presence.
        negative: Prompt of its absence.
        scale: Calibration on the validation set: probability = sigmoid(scale * logit + offset).
        offset: See ``scale``.
        threshold: Probability from which on the clue counts as present.
    """

    name: str
    positive: str
    negative: str
    scale: float = 1.0
    offset: float = 0.0
    threshold: float = 0.5

    def calibrated(self, *, scale: float, offset: float, threshold: float) -> BankedClue:
        """Return the same clue with other figures."""
        return dataclasses.replace(self, scale=scale, offset=offset, threshold=threshold)


def tokenize(texts: Sequence[str], tokenizer: Tokenizer, *, max_length: int) -> tuple[Tensor, Tensor]:
    """Turn texts into ``input_ids`` and ``attention_mask``, int64 (K, L)."""
    return pad_batch([tokenizer.encode(text).ids for text in texts], max_length=max_length)


def embed_bank(
    bank: Sequence[BankedClue], perceiver: Perceiver, tokenizer: Tokenizer, *, max_length: int
) -> tuple[Tensor, Tensor]:
    """Embed all prompts: two tensors (C, De)."""
    positive = perceiver.encode_texts(*tokenize([c.positive for c in bank], tokenizer, max_length=max_length))
    negative = perceiver.encode_texts(*tokenize([c.negative for c in bank], tokenizer, max_length=max_length))
    return positive, negative


def clue_inputs(bank: Sequence[BankedClue], positive: Tensor, negative: Tensor, override: Tensor) -> ClueInputs:
    """Join embeddings (C, De), the bank's figures and an override (B, C) into fusion's input."""
    return ClueInputs(
        positive,
        negative,
        torch.tensor([c.scale for c in bank], device=positive.device),
        torch.tensor([c.offset for c in bank], device=positive.device),
        torch.tensor([c.threshold for c in bank], device=positive.device),
        override,
    )
