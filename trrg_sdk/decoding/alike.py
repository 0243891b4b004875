"""Whether passes of any width give the same, bit for bit: then drafts need no second look at near ties."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends.base import Decoder

_LONGEST = 17  # positions of the longest pass that is tried: a token and the longest draft
_WIDTHS = (2, 3, 4, 5, 8, 16)
_SINGLE = 3  # positions that are read one a pass
_PROMPT = 8


def passes_agree(decoder: Decoder, table: NDArray[Any]) -> bool:
    """Read the same tokens in passes of several widths, where a text begins and where the decoder is nearly full.

    The kernels of a runtime are chosen by the processor, the threads and the sizes of a product, so this is tried on
    the machine that decodes, with the graph that it runs. It takes about as long as forty tokens.

    Args:
        decoder: With the logits of every position; what it read is forgotten.
        table: (V, Dl) floating, the token embeddings.

    Returns:
        Whether every row of every pass is the same as of the longest pass; false where the decoder has no room to try.
    """
    decoder.reset()
    starts = {_PROMPT, decoder.free - _LONGEST}
    if min(starts) < 1:
        return False
    return all(_agree(decoder, table, start) for start in sorted(starts))


def _agree(decoder: Decoder, table: NDArray[Any], start: int) -> bool:
    tokens = table[np.arange(start + _LONGEST) * 7 % len(table)]
    decoder.prefill(tokens[:start])
    tried = tokens[start:]
    longest = decoder.read(tried).copy()
    for width in _WIDTHS:
        decoder.truncate(start)
        if not np.array_equal(decoder.read(tried[:width]), longest[:width]):
            return False
    decoder.truncate(start)
    singles = [decoder.step(tried[place : place + 1]).copy() for place in range(_SINGLE)]
    after = decoder.read(tried[_SINGLE:])  # their keys and values have to agree as well
    return np.array_equal(np.stack(singles), longest[:_SINGLE]) and np.array_equal(after, longest[_SINGLE:])
