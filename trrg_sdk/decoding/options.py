"""How reports are decoded, where it shall be another way than the bundle's."""

from __future__ import annotations

from dataclasses import dataclass

from trrg_sdk.decoding.rules import Rules
from trrg_sdk.errors import UsageError


@dataclass(frozen=True, slots=True)
class Decoding:
    """Options of decoding; the defaults are what every figure of a bundle was measured with.

    Attributes:
        drafts: Write several tokens a pass where the bundle has a report store. Reports are the same without.
        beams: 1 is greedy; more follow so many texts at once (no drafts then, and a report streams as a whole).
        repetition_penalty: See :class:`trrg_sdk.decoding.rules.Rules`.
        no_repeat_ngram_size: See there.
    """

    drafts: bool = True
    beams: int = 1
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UsageError: Which value.
        """
        if self.beams < 1:
            raise UsageError(f"beams: expected at least 1, got {self.beams}.")
        self.rules(0, 1)

    def rules(self, eos: int, max_new_tokens: int) -> Rules:
        """Make the rules of a text with this end token and this limit."""
        return Rules(eos, max_new_tokens, self.repetition_penalty, self.no_repeat_ngram_size)
