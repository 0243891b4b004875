"""Beam search against all texts there are, rules against their definition, draws against their probabilities."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from trrg_sdk.backends import open_backend, open_decoder
from trrg_sdk.backends.base import Decoder
from trrg_sdk.bundle import Bundle
from trrg_sdk.decoding import Rules, finish, write
from trrg_sdk.decoding.beam import search
from trrg_sdk.decoding.sampling import sample
from trrg_sdk.errors import UsageError

TINY = Path(__file__).parent / "tiny_bundle"
EOS, VOCAB = 2, 5
TABLE = np.arange(VOCAB, dtype=np.float32)[:, None]
PROMPT = TABLE[3:4]


class Random:
    """A decoder of five tokens whose logits depend on all tokens before."""

    inputs = outputs = ()
    all_rows = True

    def __init__(self, seed: int, *, room: int = 50) -> None:
        self.seed, self.room, self.past = seed, room, list[int]()

    @property
    def length(self) -> int:
        return len(self.past)

    @property
    def free(self) -> int:
        return self.room - len(self.past)

    def reset(self) -> None:
        self.past = []

    def truncate(self, length: int) -> None:
        del self.past[length:]

    def prefill(self, embeds: np.ndarray, *, rows: int = 1) -> np.ndarray:
        self.reset()
        return self.read(embeds)[-rows:]

    def step(self, embed: np.ndarray) -> np.ndarray:
        return self.read(embed)[-1]

    def read(self, embeds: np.ndarray) -> np.ndarray:
        assert len(embeds) <= self.free
        rows = []
        for row in embeds:
            self.past.append(int(row[0]))
            rows.append(self.logits(self.past))
        return np.stack(rows)

    def logits(self, past: Sequence[int]) -> np.ndarray:
        return np.random.default_rng([self.seed, *past]).normal(scale=2, size=VOCAB).astype(np.float32)


def log_softmax(row: np.ndarray) -> np.ndarray:
    return np.asarray(row - np.log(np.exp(row).sum()))


def best_of_all(seed: int, limit: int, penalty: float) -> tuple[int, ...]:
    """The best text of all that end within the limit, or fill it, by its normalised log-probability."""
    decoder, scores = Random(seed), dict[tuple[int, ...], float]()
    for length in range(1, limit + 1):
        for text in itertools.product(range(VOCAB), repeat=length):
            if EOS in text[:-1] or (length < limit and text[-1] != EOS):
                continue
            rows = [log_softmax(decoder.logits([3, *text[:place]])) for place in range(length)]
            total = sum(float(row[token]) for row, token in zip(rows, text, strict=True))
            scores[text] = total / length**penalty
    return max(scores, key=scores.__getitem__)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_wide_beams_find_the_best_text_of_all(seed: int, penalty: float) -> None:
    rules = Rules(EOS, 3)
    found = search(Random(seed), PROMPT, TABLE, rules, beams=VOCAB**3, length_penalty=penalty)
    best = best_of_all(seed, 3, penalty)
    assert found.ids == tuple(token for token in best if token != EOS)
    assert (found.stopped == "eos") == (best[-1] == EOS)


@pytest.mark.parametrize("seed", range(8))
def test_one_beam_is_greedy(seed: int) -> None:
    beam = search(Random(seed), PROMPT, TABLE, Rules(EOS, 12), beams=1)
    greedy = finish(write(Random(seed), PROMPT, TABLE, Rules(EOS, 12)))
    assert beam.ids == greedy.ids
    np.testing.assert_allclose(beam.logprobs, greedy.logprobs, atol=1e-5)


def test_beams_go_back_without_a_trace() -> None:
    bundle = Bundle.load(TINY)
    decoder, table = open_decoder(open_backend(device="cpu", threads=1), bundle), bundle.token_embedding()
    prompt = np.random.default_rng(0).normal(size=(9, 16)).astype(np.float32)
    found = search(decoder, prompt, table, Rules(EOS, 12), beams=3)
    embeds = np.concatenate([prompt, table[list(found.ids)]])
    fresh = [log_softmax(decoder.prefill(embeds[: 9 + place])[0])[token] for place, token in enumerate(found.ids)]
    np.testing.assert_allclose(found.logprobs, fresh, atol=1e-3)
    greedy = finish(write(decoder, prompt, table, Rules(EOS, 12)))
    assert sum(found.logprobs) >= sum(greedy.logprobs) - 1e-3


def test_beams_end_with_the_decoders_room() -> None:
    found = search(Random(1, room=4), PROMPT, TABLE, Rules(EOS, 50, no_repeat_ngram_size=1), beams=4)
    assert len(found.ids) <= 4
    with pytest.raises(UsageError, match="beams"):
        search(Random(1), PROMPT, TABLE, Rules(EOS, 5), beams=0)


def test_a_repetition_penalty_by_its_definition() -> None:
    row = np.array([2.0, -2.0, 0.5, -0.5], np.float32)
    Rules(EOS, 5, repetition_penalty=2.0).apply(row, [0, 1, 0])
    np.testing.assert_array_equal(row, np.array([1.0, -4.0, 0.5, -0.5], np.float32))


@pytest.mark.parametrize(
    ("size", "written", "banned"),
    [(1, [0, 3], {0, 3}), (2, [0, 3, 1, 0], {3}), (3, [0, 1, 2, 0, 1], {2}), (3, [0, 1], set()), (2, [0], set())],
)
def test_no_ngram_comes_twice(size: int, written: list[int], banned: set[int]) -> None:
    row = np.zeros(4, np.float32)
    Rules(EOS, 5, no_repeat_ngram_size=size).apply(row, written)
    assert set(np.flatnonzero(np.isneginf(row)).tolist()) == banned


def test_rules_that_are_off_change_nothing() -> None:
    row = np.array([2.0, -2.0], np.float32)
    Rules(EOS, 5).apply(row, [0, 1, 0, 1])
    np.testing.assert_array_equal(row, np.array([2.0, -2.0], np.float32))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_have_the_probabilities_of_the_model(temperature: float) -> None:
    decoder: Decoder = Random(2)
    logits = Random(2).logits([3]) / temperature
    expected = np.exp(log_softmax(logits))
    draws, counts = np.random.default_rng(0), np.zeros(VOCAB)
    for _ in range(2000):
        text = sample(decoder, PROMPT, TABLE, Rules(EOS, 1), temperature=temperature, draws=draws)
        counts[text.ids[0] if text.ids else EOS] += 1
    np.testing.assert_allclose(counts / 2000, expected, atol=0.04)


def test_draws_repeat_with_their_seed_and_keep_to_the_rules() -> None:
    rules = Rules(EOS, 30, no_repeat_ngram_size=2)
    texts = []
    for seed in (1, 1, 2, 3):
        decoder = Random(5, room=20)
        texts.append(sample(decoder, PROMPT, TABLE, rules, temperature=1.0, draws=np.random.default_rng(seed)))
    assert texts[0] == texts[1]
    assert len({text.ids for text in texts}) > 1
    for text in texts:
        pairs = list(itertools.pairwise(text.ids))
        assert len(set(pairs)) == len(pairs)
        past = Random(5)
        rows = [log_softmax(past.logits([3, *text.ids[:place]])) for place in range(min(2, len(text.ids)))]
        np.testing.assert_allclose(
            text.logprobs[: len(rows)], [r[t] for r, t in zip(rows, text.ids, strict=False)], atol=1e-5
        )
    with pytest.raises(UsageError, match="temperature"):
        sample(Random(1), PROMPT, TABLE, rules, temperature=0, draws=np.random.default_rng(0))
