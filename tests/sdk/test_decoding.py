"""Greedy decoding takes the likeliest token, says how likely it was, and why it stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trrg_sdk.backends import fake, open_decoder
from trrg_sdk.backends.base import Decoder
from trrg_sdk.bundle import Bundle
from trrg_sdk.decoding import Generation, generate
from trrg_sdk.decoding.choice import likeliest
from trrg_sdk.errors import DeviceError, UsageError

TINY = Path(__file__).parent / "tiny_bundle"
EOS = 2


class Scripted:
    """A decoder that returns given rows of logits and keeps what it was fed."""

    inputs = outputs = ()

    def __init__(self, rows: list[list[float]], *, free: int = 1000) -> None:
        self.rows = [np.array(row, np.float32) for row in rows]
        self.limit = self.free = free
        self.fed: list[np.ndarray] = []

    def reset(self) -> None:
        self.fed, self.free = [], self.limit

    def prefill(self, embeds: np.ndarray, *, rows: int = 1) -> np.ndarray:
        self.reset()
        return self.step(embeds)[None]

    def step(self, embed: np.ndarray) -> np.ndarray:
        self.fed.append(np.array(embed))
        self.free -= len(embed)
        return self.rows[len(self.fed) - 1]


TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)
PROMPT = np.full((5, 3), -1, np.float32)


def run(decoder: Decoder, *, max_new_tokens: int = 10) -> Generation:
    return generate(decoder, PROMPT, TABLE, eos=EOS, max_new_tokens=max_new_tokens)


def test_stops_at_the_end_token() -> None:
    decoder = Scripted([[0, 9, 0, 0], [0, 0, 0, 9], [0, 0, 9, 0]])
    text = run(decoder)
    assert (text.ids, text.stopped) == ((1, 3), "eos")
    np.testing.assert_array_equal(decoder.fed[0], PROMPT)
    np.testing.assert_array_equal(decoder.fed[1:], [TABLE[1:2], TABLE[3:4]])


def test_logprobs_are_natural_logarithms() -> None:
    row = [0.5, 2.0, -1.0, 1.0]
    text = run(Scripted([row, [0, 0, 99, 0]]))
    assert text.logprobs == pytest.approx([np.log(np.exp(2.0) / np.exp(row).sum())])


@pytest.mark.parametrize("top", [-3e4, -100, -70.1, -69.9, 0, 69.9, 70.1, 100, 3e4])
def test_logprobs_depend_on_differences_only(top: float) -> None:
    row = np.array([top - 0.5, top, top - 1.25, top - 30], np.float32)
    shares = np.exp(row.astype(float) - float(row[1]))
    assert likeliest(row).logprob == pytest.approx(-np.log(shares.sum()), abs=1e-5)
    alone = likeliest(np.array([top - 200, top], np.float32)).logprob
    assert -1e-6 < alone <= 0, "a probability is 1 at most"


def test_large_logits_do_not_overflow() -> None:
    text = run(Scripted([[1e4, 3e38, -3e38, -np.inf], [0, 0, 9, 0]]))
    assert text.ids == (1,)
    assert text.logprobs == (0.0,)


def test_an_empty_text() -> None:
    assert run(Scripted([[0, 0, 9, 0]])) == Generation((), (), "eos")


@pytest.mark.parametrize("free", [1000, 6])
def test_stops_at_the_limit(free: int) -> None:
    decoder = Scripted([[0, 9, 0, 0]] * 20, free=free)
    text = run(decoder, max_new_tokens=10 if free == 6 else 2)
    assert (text.ids, text.stopped) == ((1, 1), "length")
    assert len(text.logprobs) == 2


def test_the_end_token_after_the_last_token_still_counts() -> None:
    text = run(Scripted([[0, 9, 0, 0], [0, 0, 9, 0]]), max_new_tokens=1)
    assert (text.ids, text.stopped) == ((1,), "eos")


def test_a_tie_takes_the_first() -> None:
    assert run(Scripted([[5, 5, 0, 5], [0, 0, 9, 0]])).ids == (0,)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_no_number_is_refused(bad: float) -> None:
    for rows in ([[0, bad, 0, 0]], [[0, 9, 0, 0], [0, 0, 9, bad]]):
        with pytest.raises(DeviceError, match="finite"):
            run(Scripted(rows))


def test_senseless_limit() -> None:
    with pytest.raises(UsageError, match="max_new_tokens"):
        run(Scripted([]), max_new_tokens=0)


def test_fake_writes_its_script() -> None:
    bundle = Bundle.load(TINY)
    decoder = open_decoder(fake.open_backend(script=[5, 6, 5]), bundle)
    for _ in range(2):
        prompt = np.zeros((bundle.manifest.prompt_length(14), 16), np.float32)
        text = generate(decoder, prompt, bundle.token_embedding(), eos=EOS, max_new_tokens=48)
        assert (text.ids, text.stopped) == ((5, 6, 5), "eos")
