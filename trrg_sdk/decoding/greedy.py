"""Greedy decoding: the likeliest token, one after another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends.base import Decoder
from trrg_sdk.errors import DeviceError, UsageError


@dataclass(frozen=True, slots=True)
class Generation:
    """A text as token ids.

    Attributes:
        ids: The tokens, without the end token.
        logprobs: The natural logarithm of each token's probability, as many as ``ids``.
        stopped: ``"eos"`` when the model ended the text, ``"length"`` when the limit or the decoder's buffer did.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: Literal["eos", "length"]


def generate(
    decoder: Decoder,
    prompt_embeds: NDArray[np.floating],
    token_embedding: NDArray[Any],
    *,
    eos: int,
    max_new_tokens: int,
) -> Generation:
    """Write a text.

    Args:
        decoder: Anything it read before is forgotten.
        prompt_embeds: (S, Dl) floating, the whole prompt in order.
        token_embedding: (V, Dl) floating, one row per token; may be memory-mapped, only rows are read.
        eos: The token that ends the text.
        max_new_tokens: The most tokens to write, the end token not counted.

    Returns:
        The text, which may be empty.

    Raises:
        UsageError: ``max_new_tokens`` is below 1, or the prompt does not fit the decoder.
        DeviceError: The runtime failed, or a logit is NaN or plus infinity.
    """
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens: expected at least 1, got {max_new_tokens}.")
    ids: list[int] = []
    logprobs: list[float] = []
    logits = decoder.prefill(prompt_embeds)
    while True:
        token, logprob = _likeliest(logits)
        if token == eos:
            return Generation(tuple(ids), tuple(logprobs), "eos")
        if len(ids) == max_new_tokens:
            return Generation(tuple(ids), tuple(logprobs), "length")
        ids.append(token)
        logprobs.append(logprob)
        if decoder.free == 0:
            return Generation(tuple(ids), tuple(logprobs), "length")
        logits = decoder.step(token_embedding[token : token + 1])


def _likeliest(logits: NDArray[np.float32]) -> tuple[int, float]:
    """Return the first of the largest logits and its log-probability.

    Raises:
        DeviceError: A logit is NaN or plus infinity; ``argmax`` would silently take it.
    """
    token = int(logits.argmax())
    with np.errstate(over="ignore", invalid="ignore"):  # -inf is right where logits lie far apart; NaN is caught below
        logprob = 0.0 - math.log(float(np.exp(logits - logits[token]).sum()))
    if not math.isfinite(logprob):
        raise DeviceError(
            "The decoder gave a logit that is no finite number: the text would be meaningless. Use another device or "
            "precision."
        )
    return token, logprob
