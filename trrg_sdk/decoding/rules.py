"""What a text must keep to: its end token, its length, and how much it may repeat itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.errors import UsageError


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one text. Prompt embeddings have no token ids, so only written tokens count as repeated.

    Attributes:
        eos: The token that ends the text.
        max_new_tokens: The most tokens to write, the end token not counted.
        repetition_penalty: A logit of a token that stands in the text is divided by it when positive and multiplied
            when negative (Keskar et al. 2019, as Hugging Face computes it); 1 leaves it alone.
        no_repeat_ngram_size: No so many tokens in a row may come twice; 0 allows it.
    """

    eos: int
    max_new_tokens: int
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UsageError: Which value.
        """
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}.")
        if not self.repetition_penalty > 0:
            raise UsageError(f"repetition_penalty: expected a positive number, got {self.repetition_penalty}.")
        if self.no_repeat_ngram_size < 0:
            raise UsageError(f"no_repeat_ngram_size: expected at least 0, got {self.no_repeat_ngram_size}.")

    @property
    def inert(self) -> bool:
        """Whether :meth:`apply` does nothing."""
        return self.repetition_penalty == 1.0 and self.no_repeat_ngram_size == 0

    @property
    def stretch(self) -> float:
        """How much further apart the penalty can move two logits, at least 1."""
        return max(self.repetition_penalty, 1.0 / self.repetition_penalty)

    def apply(self, logits: NDArray[np.float32], written: Sequence[int]) -> None:
        """Change logits (V,) in place; the work grows with the text, not with the vocabulary.

        Args:
            logits: Of the next token.
            written: The text so far.
        """
        if self.repetition_penalty != 1.0 and written:
            seen = np.unique(np.asarray(written))
            values = logits[seen]
            penalty = np.float32(self.repetition_penalty)
            logits[seen] = np.where(values < 0, values * penalty, values / penalty)
        if banned := _ends_of_repeats(written, self.no_repeat_ngram_size):
            logits[banned] = -np.inf


def _ends_of_repeats(written: Sequence[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram which stands in the text already."""
    if size == 0 or len(written) < size:
        return []
    tail = tuple(written[len(written) - size + 1 :])
    return [
        written[start + size - 1]
        for start in range(len(written) - size + 1)
        if tuple(written[start : start + size - 1]) == tail
    ]
