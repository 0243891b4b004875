"""Greedy decoding of several texts together: one that is finished leaves, the next one enters.

Every text is the one that :mod:`trrg_sdk.decoding.greedy` writes. A pass over several rows may round differently from a
pass over one, so a token is taken from it only when it leads the runner-up by more than that; a text with a nearer tie
is given back to be written alone, from the start. A prompt is read by the same pass as alone.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends.batch import BatchDecoder
from trrg_sdk.decoding.choice import NEAR_TIE, Token, likeliest
from trrg_sdk.decoding.greedy import Generation, Stopped
from trrg_sdk.decoding.rules import Rules


class Finished(NamedTuple):
    """A text that has left the batch.

    Attributes:
        key: Whose.
        generation: The text; None when it must be written alone.
        seconds: That it was in the batch.
    """

    key: int
    generation: Generation | None
    seconds: float


class Choices(NamedTuple):
    """The likeliest token of every row.

    Attributes:
        tokens: (n,) the first of the largest logits.
        logprobs: n natural logarithms of their probabilities; NaN where a logit is no number.
        leads: (n,) how far each lies above the runner-up.
    """

    tokens: NDArray[np.int64]
    logprobs: list[float]
    leads: NDArray[np.float32]


def choose(logits: NDArray[np.float32]) -> Choices:
    """Choose a token for every row at once.

    Args:
        logits: float32 (n, V); the likeliest of each row is overwritten.
    """
    rows = np.arange(len(logits))
    tokens = logits.argmax(axis=1)
    best = logits[rows, tokens]
    with np.errstate(over="ignore", invalid="ignore"):  # as in likeliest; the caller looks for what is no number
        sums = np.exp(logits - best[:, None]).sum(axis=1)
        logits[rows, tokens] = -np.inf
        leads = best - logits.max(axis=1)
    return Choices(tokens, [0.0 - math.log(value) for value in sums.tolist()], leads)


def near_tie(decoder: BatchDecoder, table: NDArray[Any], precision: str) -> float:
    """Find the lead below which a token of a batch is not trusted, by trying rows together and alone.

    On the kernels that were tried (ONNX Runtime 1.32, AVX-512, fp32, fp16, int8, int4, batches of 2 to 16) each row of
    a batch is, bit for bit, what it is alone. Where that holds for every batch size, the lead of fp32 is margin enough;
    where it does not, a batch is as noisy as a pass over several positions, and gets the lead that was measured for it.

    Args:
        decoder: Its slots are overwritten.
        table: (V, Dl) floating.
        precision: Of the decoder.

    Returns:
        The lead in logits; infinite for a precision that was never measured: every text is then written alone.
    """
    slots = decoder.slots
    together: list[NDArray[np.float32]] = []
    for count in range(2, slots + 1):
        _read_probes(decoder, table, count)
        together.append(decoder.step(_tokens(table, np.arange(count))).copy())
    alone = []
    for slot in range(slots):  # slot 0 is where a pass of one row happens
        decoder.prefill(0, _tokens(table, _probe(slot)))
        alone.append(decoder.step(_tokens(table, np.asarray([slot])))[0].copy())
    if all(np.array_equal(rows, alone[: len(rows)]) for rows in together):
        return NEAR_TIE["fp32"]
    return NEAR_TIE.get(precision, float("inf"))


def _read_probes(decoder: BatchDecoder, table: NDArray[Any], count: int) -> None:
    for slot in range(count):
        decoder.prefill(slot, _tokens(table, _probe(slot)))


def _probe(slot: int) -> NDArray[np.int64]:
    """Token ids of a short prompt, another one for every slot."""
    return np.arange(3 + slot % 8 * 2) * 7 + slot


def _tokens(table: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.floating]:
    rows: NDArray[np.floating] = table[ids % len(table)]
    return rows


@dataclass(slots=True)
class _Text:
    key: int
    next: Token
    started: float
    tokens: list[Token] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    def finished(self, stopped: Stopped) -> Finished:
        logprobs = tuple(token.logprob for token in self.tokens)
        made = Generation(tuple(self.ids), logprobs, stopped, passes=len(self.ids) + 1)
        return Finished(self.key, made, time.perf_counter() - self.started)


class BatchWriter:
    """Writes texts together. One thread at a time."""

    def __init__(self, decoder: BatchDecoder, table: NDArray[Any], rules: Rules, *, near_tie: float) -> None:
        """Start with nothing to write.

        Args:
            decoder: Its slots are overwritten.
            table: (V, Dl) floating, one row per token; may be memory-mapped, only rows are read.
            rules: Of every text.
            near_tie: The lead below which a token of a batch is not trusted.
        """
        self._decoder = decoder
        self._table = table
        self._rules = rules
        self._near_tie = near_tie * rules.stretch
        self._texts: list[_Text] = []  # the text at place i is in slot i

    @property
    def active(self) -> int:
        """How many texts are being written."""
        return len(self._texts)

    @property
    def room(self) -> bool:
        """Whether another text may enter."""
        return len(self._texts) < self._decoder.slots

    def admit(self, key: int, prompt: NDArray[np.floating]) -> None:
        """Read the prompt of a text; there must be room.

        Args:
            key: Comes back with the text.
            prompt: (S, Dl) floating.

        Raises:
            UsageError: The prompt does not fit.
            DeviceError: The runtime failed, or a logit is NaN or plus infinity.
        """
        started = time.perf_counter()
        row = self._decoder.prefill(len(self._texts), prompt)
        self._rules.apply(row, ())
        self._texts.append(_Text(key, likeliest(row), started))

    def advance(self) -> list[Finished]:
        """Append the next token to every text, and find the ones after them with one pass.

        Returns:
            The texts that are finished or must be written alone; they have left.

        Raises:
            DeviceError: The runtime failed.
        """
        left = []
        for slot in reversed(range(len(self._texts))):
            if stopped := self._append(slot):
                left.append(self._texts[slot].finished(stopped))
                self._leave(slot)
        if self._texts:
            left += self._step()
        return left

    def _append(self, slot: int) -> Stopped | None:
        """Append the token that was chosen, or say why the text ends; the rules of ``greedy`` in their order."""
        text = self._texts[slot]
        if text.next.id == self._rules.eos:
            return "eos"
        if len(text.ids) == self._rules.max_new_tokens:
            return "length"
        text.tokens.append(text.next)
        text.ids.append(text.next.id)
        return "length" if self._decoder.free(slot) == 0 else None

    def _step(self) -> list[Finished]:
        logits = self._decoder.step(self._table[[text.ids[-1] for text in self._texts]])
        if not self._rules.inert:
            for row, text in zip(logits, self._texts, strict=True):
                self._rules.apply(row, text.ids)
        chosen = choose(logits)
        trusted = (chosen.leads > self._near_tie) & np.isfinite(chosen.logprobs)
        left = []
        for slot in reversed(range(len(self._texts))):
            text = self._texts[slot]
            if trusted[slot]:
                text.next = Token(int(chosen.tokens[slot]), chosen.logprobs[slot])
            else:
                left.append(Finished(text.key, None, time.perf_counter() - text.started))
                self._leave(slot)
        return left

    def _leave(self, slot: int) -> None:
        """Give the slot to the last text: those in use lie side by side."""
        last = self._texts.pop()
        if slot < len(self._texts):
            self._decoder.move(len(self._texts), slot)
            self._texts[slot] = last
