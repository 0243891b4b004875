"""Texts of several lengths as one batch of token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trrg_train.models.tokenizer import PAD_ID


def pad_batch(sequences: Sequence[Sequence[int]], *, max_length: int) -> tuple[Tensor, Tensor]:
    """Pad on the right (left padding gives wrong logits in the exported decoder, facts.md).

    Args:
        sequences: K lists of token ids.
        max_length: Longer ones are an error: nothing is cut silently.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 (K, L).

    Raises:
        ValueError: A sequence is empty or longer than ``max_length``.
    """
    longest = max(len(s) for s in sequences)
    if longest > max_length or min(len(s) for s in sequences) == 0:
        raise ValueError(f"texts must have 1 to {max_length} tokens, the longest has {longest}")
    ids = torch.full((len(sequences), longest), PAD_ID, dtype=torch.long)
    mask = torch.zeros((len(sequences), longest), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(list(sequence), dtype=torch.long)
        mask[row, : len(sequence)] = 1
    return ids, mask
