"""Whether passes of any width give the same, bit for bit: then drafts need no second look at near ties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends.base import Decoder

_LONGEST = 17  # positions of the longest pass that is tried: a token and the longest draft
_WIDTHS = (2, 3, 4, 5, 8, 16)
_DRAFTED = (3, 1, 8)  # positions of a draft that is read with a prompt
_SINGLE = 3  # positions that are read one a pass
_PROMPT = 8


def passes_agree(decoder: Decoder, table: NDArray[Any]) -> bool:
    """Read the same tokens in passes of several widths, where a text begins and where the decoder is nearly full.

    The kernels of a runtime are chosen by the processor, the threads and the sizes of a product, so this is tried on
    the machine that decodes, with the graph that it runs. It takes about as long as fifty tokens.

    Args:
        decoder: With the logits of every position; what it read is forgotten.
        table: (V, Dl) floating, the token embeddings.

    Returns:
        Whether every row of every pass is the same as of the longest pass, and a prompt gives the same with a draft
        behind it; false where the decoder has no room to try.
    """
    decoder.reset()
    full = decoder.free - _LONGEST
    if min(full, _PROMPT) < 1:
        return False
    trials = {full: _DRAFTED[:1], _PROMPT: _DRAFTED}  # a long prompt takes long
    return all(_agree(decoder, table, start, drafted) for start, drafted in sorted(trials.items()))


def _agree(decoder: Decoder, table: NDArray[Any], start: int, drafted: Sequence[int]) -> bool:
    tokens = table[np.arange(start + _LONGEST) * 7 % len(table)]
    first, tried = decoder.prefill(tokens[:start]).copy(), tokens[start:]
    longest = decoder.read(tried).copy()
    for width in _WIDTHS:
        decoder.truncate(start)
        if not np.array_equal(decoder.read(tried[:width]), longest[:width]):
            return False
    decoder.truncate(start)
    singles = [decoder.step(tried[place : place + 1]).copy() for place in range(_SINGLE)]
    after = decoder.read(tried[_SINGLE:])  # their keys and values have to agree as well
    if not np.array_equal(np.stack(singles), longest[:_SINGLE]) or not np.array_equal(after, longest[_SINGLE:]):
        return False
    expected = np.concatenate([first, longest])
    return all(_agrees_with_prompt(decoder, tokens, expected, width) for width in drafted)


def _agrees_with_prompt(decoder: Decoder, tokens: NDArray[Any], expected: NDArray[np.float32], width: int) -> bool:
    """Whether a prompt and so many tokens in one pass, and the rest in another, give the expected rows."""
    start = len(tokens) - len(expected) + 1
    rows = decoder.prefill(tokens[: start + width], rows=1 + width).copy()
    return np.array_equal(np.concatenate([rows, decoder.read(tokens[start + width :])]), expected)
