"""The clue bank as tensors: its prompts embedded, its figures joined to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trrg_train.models.fusion import ClueInputs
from trrg_train.models.padding import pad_batch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from trrg_train.models.clue import BankedClue
    from trrg_train.models.perceiver import Perceiver


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
