"""Greedy decoding: the likeliest token, one after another, or several a pass where a draft guessed them.

With drafts the text is the same, token for token. A pass over several positions gives logits that differ by rounding
from those of single ones, and leaves keys and values that do. So a token is taken from it only when its lead over the
runner-up is larger than such differences can be. A nearer tie is decided as it would have been without drafts: back
to the last position whose keys and values were written one a pass, from there one position a pass to the tie. Every
position is written so at most once, so drafts that are always wrong cost at most a text without them in addition.

Where passes of any width give the same bits (:mod:`trrg_sdk.decoding.alike`) the lead asked for is 0: nothing is
decided again, and the first draft is read with the prompt, which saves a pass.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends.base import Decoder
from trrg_sdk.decoding.choice import Token, lead, likeliest, likeliest_rows
from trrg_sdk.decoding.rules import Rules
from trrg_sdk.errors import UsageError

Stopped = Literal["eos", "length"]


@dataclass(frozen=True, slots=True)
class Generation:
    """A text as token ids.

    Attributes:
        ids: The tokens, without the end token.
        logprobs: The natural logarithm of each token's probability, as many as ``ids``. Where drafts were used they
            agree with those without to rounding.
        stopped: ``"eos"`` when the model ended the text, ``"length"`` when the limit or the decoder's buffer did.
        passes: How often the decoder ran, the prompt counted as one.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: Stopped
    passes: int = field(default=0, compare=False)


class Pass(NamedTuple):
    """What came of one pass of the decoder.

    Attributes:
        width: Positions that it read; of a prompt the last one counts.
        written: Tokens that it decided, 1 and more.
        seconds: That it took with the choice of its tokens; 0 for a prompt's, and the one after it, which is slower.
        drafting: Seconds for the draft before it, and for hearing of the pass before that.
        settling: Passes over one position that decided a near tie after it.
    """

    width: int
    written: int
    seconds: float
    drafting: float
    settling: int


class Drafter(Protocol):
    """Guesses how a text goes on. Its guesses decide how fast a text is written, never what it says."""

    def propose(self, written: Sequence[int], *, most: int) -> Sequence[int] | None:
        """Guess the next tokens.

        Args:
            written: The text so far.
            most: How many are of use at most.

        Returns:
            The tokens; None for a pass that :meth:`learn` need not hear of, because nothing is drafted for now.
        """
        ...

    def learn(self, outcome: Pass) -> None:
        """Hear what came of a pass, with a draft or without."""
        ...


class Drafts(NamedTuple):
    """A drafter, and the lead (logits) below which a token is decided again without it; 0 trusts every pass."""

    drafter: Drafter
    near_tie: float


def generate(
    decoder: Decoder,
    prompt_embeds: NDArray[np.floating],
    token_embedding: NDArray[Any],
    *,
    eos: int,
    max_new_tokens: int,
    drafts: Drafts | None = None,
) -> Generation:
    """Write a text.

    Args:
        decoder: Anything it read before is forgotten.
        prompt_embeds: (S, Dl) floating, the whole prompt in order.
        token_embedding: (V, Dl) floating, one row per token; may be memory-mapped, only rows are read.
        eos: The token that ends the text.
        max_new_tokens: The most tokens to write, the end token not counted.
        drafts: What may be written next; None reads one position a pass.

    Returns:
        The text, which may be empty.

    Raises:
        UsageError: ``max_new_tokens`` is below 1, or the prompt does not fit the decoder.
        DeviceError: The runtime failed, or a logit is NaN or plus infinity.
    """
    return finish(write(decoder, prompt_embeds, token_embedding, Rules(eos, max_new_tokens), drafts=drafts))


def finish(writing: Generator[tuple[Token, ...], None, Generation]) -> Generation:
    """Write the rest of a text.

    Args:
        writing: What :func:`write` returned.
    """
    while True:
        try:
            next(writing)
        except StopIteration as done:
            generation: Generation = done.value
            return generation


def write(
    decoder: Decoder,
    prompt_embeds: NDArray[np.floating],
    token_embedding: NDArray[Any],
    rules: Rules,
    *,
    drafts: Drafts | None = None,
) -> Generator[tuple[Token, ...], None, Generation]:
    """Write a text and hand it out as it grows; closing the generator stops between two passes.

    Args:
        decoder: Anything it read before is forgotten.
        prompt_embeds: (S, Dl) floating, the whole prompt in order.
        token_embedding: (V, Dl) floating, one row per token; may be memory-mapped, only rows are read.
        rules: Of the text.
        drafts: What may be written next; None reads one position a pass.

    Yields:
        The tokens that became certain with a pass, at least one.

    Returns:
        The text, which may be empty.

    Raises:
        UsageError: The prompt does not fit the decoder, or drafts were given to one without ``all_rows``.
        DeviceError: The runtime failed, or a logit is NaN or plus infinity.
    """
    if drafts and not decoder.all_rows:
        raise UsageError("drafts need the logits of every position; this decoder gives those of the last one only.")
    text = _Text(decoder, token_embedding, rules, drafts, prompt_embeds)
    told = 0
    while (stopped := text.advance()) is None:
        yield tuple(text.tokens[told:])
        told = len(text.tokens)
    if told < len(text.tokens):
        yield tuple(text.tokens[told:])
    ids, logprobs = zip(*text.tokens, strict=True) if text.tokens else ((), ())
    return Generation(ids, logprobs, stopped, text.passes)


@dataclass(slots=True)
class _Text:
    """A text that grows by one pass at a time.

    Attributes:
        decoder: Has read the prompt and all of ``tokens`` but the last.
        prompt: (S, Dl) floating.
        tokens: What is certain.
        ids: Of these tokens.
        next: The token after them.
        exact: How many of the tokens have keys and values that were written one a pass.
        hearing: Seconds that the drafter took to hear of the last pass.
    """

    decoder: Decoder
    table: NDArray[Any]
    rules: Rules
    drafts: Drafts | None
    prompt: NDArray[np.floating]
    tokens: list[Token] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    exact: int = 0
    hearing: float = 0.0
    passes: int = 0
    next: Token = field(init=False)

    def __post_init__(self) -> None:
        """Read the prompt, and find out the first token."""
        self.decoder.reset()
        if self.drafts and not self.drafts.near_tie:
            self._read(self.drafts)
        else:
            self._step()

    def advance(self) -> Stopped | None:
        """Append the next token, and with one pass find out what comes after it; or say why the text ends."""
        if self.next.id == self.rules.eos:
            return "eos"
        if len(self.ids) == self.rules.max_new_tokens:
            return "length"
        self._append(self.next)
        if self.decoder.free == 0:
            return "length"
        if self.drafts is None:
            self._step()
        else:
            self._read(self.drafts)
        return None

    def _append(self, token: Token) -> None:
        self.tokens.append(token)
        self.ids.append(token.id)

    def _choose(self, row: NDArray[np.float32]) -> Token:
        self.rules.apply(row, self.ids)
        return likeliest(row)

    def _step(self) -> None:
        self.passes += 1
        if self.ids:
            row = self.decoder.step(self.table[self.ids[-1] : self.ids[-1] + 1])
        else:
            row = self.decoder.prefill(self.prompt)[0]
        self.next = self._choose(row)

    def _read(self, drafts: Drafts) -> None:
        """Read the last token and a draft, keep what the model would have written, and tell the drafter."""
        start = time.perf_counter()
        before, timed = len(self.ids), self.passes > 1
        room = self.decoder.free - (1 if before else len(self.prompt))
        most = max(0, min(room, self.rules.max_new_tokens - before))
        proposed = drafts.drafter.propose(self.ids, most=most)
        if proposed is None and self.exact == before - 1:
            self._step()
            self.exact = before
            return
        draft = list(proposed or ())[:most]
        if self.rules.eos in draft:
            draft = draft[: draft.index(self.rules.eos)]  # nothing is read after it
        drafted = time.perf_counter()
        sure = self._pass(draft, drafts.near_tie * self.rules.stretch)
        seconds = time.perf_counter() - drafted if timed else 0.0
        settling = 0 if sure else self._settle()
        if proposed is None:
            return
        written = len(self.ids) - before + 1  # and the next token
        heard = time.perf_counter()
        drafts.drafter.learn(Pass(1 + len(draft), written, seconds, drafted - start + self.hearing, settling))
        self.hearing = time.perf_counter() - heard

    def _pass(self, draft: list[int], near_tie: float) -> bool:
        """Read the last token and a draft, and forget what the model would not have written.

        Returns:
            Whether the next token is certain.
        """
        read = len(self.ids)
        if not draft and self.exact == read - 1:
            self._step()
            self.exact = read
            return True
        self.passes += 1
        rows = self._rows(draft)
        for place, token in enumerate(self._choices(rows, draft)):
            self.next = token
            if near_tie and lead(rows[place], token.id) < near_tie:
                return False
            if place == len(draft) or token.id != draft[place]:
                break
            self._append(token)
        self.decoder.truncate(len(self.prompt) + len(self.ids))
        if near_tie == 0:  # passes of any width agree, so these keys and values are as good
            self.exact = len(self.ids)
        return True

    def _rows(self, draft: list[int]) -> NDArray[np.float32]:
        """The logits after what is written and after each token of a draft."""
        if self.ids:
            return self.decoder.read(self.table[[self.ids[-1], *draft]])
        return self.decoder.prefill(np.concatenate([self.prompt, self.table[draft]]), rows=1 + len(draft))

    def _choices(self, rows: NDArray[np.float32], draft: list[int]) -> Iterator[Token]:
        """The next token after each row; at least until one is not the draft's."""
        if self.rules.inert and len(rows) > 1:
            return iter(likeliest_rows(rows, draft))
        return map(self._choose, rows)  # one by one: what rules make of a row depends on the tokens before

    def _settle(self) -> int:
        """Decide the next token as it would have been without drafts; return in how many passes."""
        self.decoder.truncate(len(self.prompt) + self.exact)
        again = self.ids[self.exact :]
        for token in again:
            row = self.decoder.step(self.table[token : token + 1])
        self.passes += len(again)
        self.exact = len(self.ids)
        self.next = self._choose(row)
        return len(again)
