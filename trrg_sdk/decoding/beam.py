"""Beam search over a decoder for one sequence: it goes back to where two texts part, and reads the rest in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends.base import Decoder
from trrg_sdk.decoding.choice import likeliest
from trrg_sdk.decoding.greedy import Generation
from trrg_sdk.decoding.rules import Rules
from trrg_sdk.errors import UsageError


class _Beam(NamedTuple):
    """A text that is being searched: its tokens, the log-probability of each, and the score it is ranked by."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float

    def normalised(self, length: int, penalty: float) -> float:
        return self.score / float(length**penalty)

    def generation(self, eos: int, passes: int) -> Generation:
        if self.ids[-1] == eos:
            return Generation(self.ids[:-1], self.logprobs[:-1], "eos", passes)
        return Generation(self.ids, self.logprobs, "length", passes)


def search(
    decoder: Decoder,
    prompt_embeds: NDArray[np.floating],
    token_embedding: NDArray[Any],
    rules: Rules,
    *,
    beams: int,
    length_penalty: float = 1.0,
) -> Generation:
    """Write the likeliest text that a beam search finds, as Hugging Face ``generate`` does without early stopping.

    Args:
        decoder: As for :func:`trrg_sdk.decoding.greedy.write`, like the next two.
        prompt_embeds: (S, Dl).
        token_embedding: (V, Dl).
        rules: Of the text; here ``max_new_tokens`` counts the end token, as it does there.
        beams: Texts that are followed at once, at least 1.
        length_penalty: A text's log-probability is divided by its length to this power.

    Returns:
        The text; its log-probabilities are those before a repetition penalty.
    """
    if beams < 1:
        raise UsageError(f"beams: expected at least 1, got {beams}.")
    reader = _Reader(decoder, prompt_embeds, token_embedding)
    limit = min(rules.max_new_tokens, reader.room())
    running, finished = [_Beam((), (), 0.0)], list[tuple[float, _Beam]]()
    for length in range(1, limit + 1):
        grown = reader.grown(running, rules, 2 * beams)
        ended = (one for one in grown[:beams] if one.ids[-1] == rules.eos)
        finished += [(one.normalised(length, length_penalty), one) for one in ended]
        finished = sorted(finished, key=lambda pair: -pair[0])[:beams]
        running = [one for one in grown if one.ids[-1] != rules.eos][:beams]
        full = len(finished) == beams
        if not running or (full and finished[-1][0] >= running[0].normalised(length, length_penalty)):
            break
    else:
        finished += [(one.normalised(limit, length_penalty), one) for one in running]
    return max(finished, key=lambda pair: pair[0])[1].generation(rules.eos, reader.passes)


@dataclass(slots=True)
class _Reader:
    """Gives the logits after any text; what it shares with the text before is not read again."""

    decoder: Decoder
    prompt: NDArray[np.floating]
    table: NDArray[Any]
    held: tuple[int, ...] = ()
    passes: int = 0

    def room(self) -> int:
        """Return how many tokens fit: the last one is not read. At least 1, so that a prompt too long is refused."""
        self.decoder.reset()
        return max(1, self.decoder.free - len(self.prompt) + 1)

    def grown(self, beams: Sequence[_Beam], rules: Rules, count: int) -> list[_Beam]:
        """Return the likeliest texts that are one token longer, the likeliest first."""
        longer = [one for beam in beams for one in self._grown(beam, rules, count)]
        return sorted(longer, key=lambda one: -one.score)[:count]

    def _grown(self, beam: _Beam, rules: Rules, count: int) -> list[_Beam]:
        row = self._logits(beam.ids)
        best = likeliest(row)
        row -= row[best.id] - np.float32(best.logprob)  # log-probabilities
        raw = row.copy() if rules.stretch > 1.0 else row
        rules.apply(row, beam.ids)
        count = min(count, len(row))
        tokens = np.argpartition(row, len(row) - count)[len(row) - count :]
        return [
            _Beam((*beam.ids, token), (*beam.logprobs, float(raw[token])), beam.score + float(row[token]))
            for token in sorted(tokens.tolist())
        ]

    def _logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        self.passes += 1
        if not ids:
            return np.asarray(self.decoder.prefill(self.prompt)[0])
        shared = 0
        while shared < min(len(ids) - 1, len(self.held)) and ids[shared] == self.held[shared]:
            shared += 1
        self.decoder.truncate(len(self.prompt) + shared)
        self.held = tuple(ids)
        return np.asarray(self.decoder.read(self.table[list(ids[shared:])])[-1])
