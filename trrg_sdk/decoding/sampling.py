"""Texts drawn by chance instead of the likeliest one: to see how sure the model is, never to report with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends.base import Decoder
from trrg_sdk.decoding.choice import likeliest
from trrg_sdk.decoding.greedy import Generation
from trrg_sdk.decoding.rules import Rules
from trrg_sdk.errors import UsageError


def sample(
    decoder: Decoder,
    prompt_embeds: NDArray[np.floating],
    token_embedding: NDArray[Any],
    rules: Rules,
    *,
    temperature: float,
    draws: np.random.Generator,
) -> Generation:
    """Draw one text.

    Args:
        decoder: Anything it read before is forgotten.
        prompt_embeds: (S, Dl) floating, the whole prompt in order.
        token_embedding: (V, Dl) floating, one row per token.
        rules: Of the text.
        temperature: Logits are divided by it.
        draws: Where chance comes from.

    Returns:
        The text; its log-probabilities are those at temperature 1.

    Raises:
        UsageError: The temperature is not positive, or the prompt does not fit the decoder.
    """
    if not temperature > 0:
        raise UsageError(f"temperature: expected a positive number, got {temperature}.")
    ids: list[int] = []
    logprobs: list[float] = []
    row = decoder.prefill(prompt_embeds)[0]
    while True:
        rules.apply(row, ids)
        best = likeliest(row)
        # Adding Gumbel noise and taking the largest draws from the softmax.
        token = int((row / np.float32(temperature) + draws.gumbel(size=len(row))).argmax())
        if token == rules.eos or len(ids) == rules.max_new_tokens or decoder.free == 0:
            return Generation(tuple(ids), tuple(logprobs), "eos" if token == rules.eos else "length", len(ids) + 1)
        ids.append(token)
        logprobs.append(best.logprob + float(row[token] - row[best.id]))
        row = decoder.step(token_embedding[token : token + 1])
