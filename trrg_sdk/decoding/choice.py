"""Which token comes next, and when its lead is too small to trust logits of a pass over several positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.errors import DeviceError

NEAR_TIE = {"fp32": 1e-3, "fp16": 0.05, "int8": 0.2, "int4": 0.14, "int4-fp16": 0.06}
"""Precision of the decoder → the lead below which a token is decided again, one position a pass.

A kernel sums in another order over several rows than over one, so logits differ by rounding, and from then on so do
the keys and values. The largest change of any lead that was seen: fp32 1.3e-5, fp16 .018, int8 .078, int4 .051; no
likeliest token changed (rows of 60 phantoms by the embedded decoder's weights in each precision on ONNX Runtime's CPU
provider, passes over 2 to 16 positions; int8 by `tests/benchmarks/decode.py mini`, the others by a benchmark that it
replaced). On a GPU (an H200, the CUDA provider, 15 phantoms) fp16 .018 and int4-fp16 .02. Another model may be noisier:
an export measures its own, and its bundle may ask for more than this table.
"""

_MODEST = 70.0
"""Below it, on both sides of zero, the exponentials of all logits have a finite sum with all its digits in float32."""

_NOT_FINITE = (
    "The decoder gave a logit that is no finite number: the text would be meaningless. Use another device or precision."
)


class Token(NamedTuple):
    """A token and the natural logarithm of its probability."""

    id: int
    logprob: float


def likeliest(logits: NDArray[np.float32]) -> Token:
    """Return the first of the largest logits.

    Args:
        logits: float32 (V,).

    Raises:
        DeviceError: A logit is NaN or plus infinity; ``argmax`` would silently take it.
    """
    token = int(logits.argmax())
    return Token(token, _logprob(logits, token))


def likeliest_rows(rows: NDArray[np.float32], guesses: Sequence[int]) -> list[Token]:
    """Choose after each position of a pass, as far as the guesses are right; what lies behind is not computed.

    Args:
        rows: float32 (S, V).
        guesses: S - 1 tokens.

    Returns:
        The likeliest tokens up to the first one that was not guessed.

    Raises:
        DeviceError: A logit is NaN or plus infinity.
    """
    tokens = []
    for place, best in enumerate(rows.argmax(axis=1).tolist()):
        tokens.append(Token(best, _logprob(rows[place], best)))
        if place < len(guesses) and guesses[place] != best:
            break
    return tokens


def _logprob(logits: NDArray[np.float32], token: int) -> float:
    """The natural logarithm of the probability of the likeliest token.

    Between two passes the processor has forgotten NumPy's code: after a pass over 42 MB of weights ``errstate`` and
    ``max`` took 40 us each, and the other steps together as much. So there is as little of it as can be: even that the
    largest becomes 0 first, so that no sum overflows, is left to the logits that need it.
    """
    top = float(logits[token])
    if not abs(top) < _MODEST:  # nor NaN, which argmax takes for the largest
        return _logprob_of_far(logits, token)
    return min(0.0, top - math.log(np.add.reduce(np.exp(logits))))


def _logprob_of_far(logits: NDArray[np.float32], token: int) -> float:
    with np.errstate(over="ignore", invalid="ignore"):  # -inf is right where logits lie far apart; NaN is caught below
        total = float(np.exp(logits - logits[token]).sum())
    if not math.isfinite(total):
        raise DeviceError(_NOT_FINITE)
    return 0.0 - math.log(total)


def lead(logits: NDArray[np.float32], token: int) -> float:
    """Return how far a token's logit lies above all others.

    Args:
        logits: float32 (V,), the same afterwards.
        token: The likeliest one.
    """
    best = logits[token]
    logits[token] = -np.inf
    runner_up = logits.max()
    logits[token] = best
    return float(best - runner_up)
