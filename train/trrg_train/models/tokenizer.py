"""The tokenizer that clue encoder, language model and runtime share: byte-level BPE, so that any text fits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from trrg_sdk.errors import UsageError

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
SPECIAL = ("<pad>", "<bos>", "<eos>")


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Learn merges from report texts and prompts.

    Args:
        texts: Training split only.
        vocab_size: Upper limit; small corpora give fewer.

    Returns:
        A ``tokenizers.Tokenizer`` with ``<pad>`` 0, ``<bos>`` 1, ``<eos>`` 2.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read ``tokenizer.json``.

    Raises:
        UsageError: It is no tokenizer.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no other class
        raise UsageError(f"{path} cannot be read as a tokenizer ({error}); copy the checkpoint again") from error


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
