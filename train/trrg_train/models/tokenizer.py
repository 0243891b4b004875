"""The tokenizer that clue encoder, language model and runtime share: byte-level BPE, so that any text fits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

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
