"""Drafts change how many passes a text takes, and never a token of it."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from trrg_sdk.backends import fake, open_backend, open_decoder
from trrg_sdk.backends.base import Decoder
from trrg_sdk.bundle import Bundle
from trrg_sdk.decoding import Generation, Rules, generate, write
from trrg_sdk.decoding.choice import NEAR_TIE, lead, likeliest, likeliest_rows
from trrg_sdk.decoding.greedy import Drafts, Pass
from trrg_sdk.errors import DeviceError, UsageError

TINY = Path(__file__).parent / "tiny_bundle"
EOS = 2


class Guess:
    """A drafter that proposes what a function of the text so far returns, and keeps what it heard."""

    def __init__(self, propose: Callable[[Sequence[int]], Sequence[int]]) -> None:
        self.function = propose
        self.heard: list[Pass] = []

    def propose(self, written: Sequence[int], *, most: int) -> Sequence[int]:
        return self.function(written)

    def learn(self, outcome: Pass) -> None:
        self.heard.append(outcome)


def adversaries(truth: Sequence[int], vocab: int, seed: int) -> dict[str, Guess]:
    """Drafters that know the text or nothing about it."""
    rng = np.random.default_rng(seed)
    rest = [*truth, EOS]
    return {
        "perfect": Guess(lambda written: rest[len(written) : len(written) + 8]),
        "all at once": Guess(lambda written: [*truth[len(written) :], *[5] * 400]),
        "past the end": Guess(lambda written: [*rest[len(written) :], 7, 8, 9, EOS, 7]),
        "one token off everywhere": Guess(lambda written: [(t + 1) % vocab for t in truth[len(written) :][:6]]),
        "right, then wrong": Guess(lambda written: [*truth[len(written) :][:3], 4, 4, 4]),
        "random": Guess(lambda written: rng.integers(3, vocab, rng.integers(0, 9)).tolist()),
        "sometimes": Guess(lambda written: rest[len(written) :][: rng.integers(0, 5)]),
        "empty": Guess(lambda written: []),
    }


def same(got: Generation, expected: Generation) -> bool:
    """Equal tokens and end, log-probabilities to rounding."""
    assert (got.ids, got.stopped) == (expected.ids, expected.stopped)
    np.testing.assert_allclose(got.logprobs, expected.logprobs, atol=0.05)
    return True


@pytest.fixture(scope="module")
def tiny() -> tuple[Decoder, np.ndarray]:
    bundle = Bundle.load(TINY)
    return open_decoder(open_backend(device="cpu", threads=1), bundle), bundle.token_embedding()


@pytest.fixture(scope="module")
def mini() -> tuple[Decoder, np.ndarray]:
    bundle = Bundle.embedded()
    return open_decoder(open_backend(device="cpu", threads=1), bundle), bundle.token_embedding()


@pytest.mark.parametrize("seed", range(3))
def test_the_same_text_whatever_is_drafted(tiny: tuple[Decoder, np.ndarray], seed: int) -> None:
    decoder, table = tiny
    rng = np.random.default_rng(seed)
    fewer = 0
    for number in range(70):
        prompt = rng.normal(size=(rng.choice([3, 9, 60]), 16)).astype(np.float32)  # some run into the decoder's end
        limit = int(rng.integers(1, 40))
        plain = generate(decoder, prompt, table, eos=EOS, max_new_tokens=limit)
        guesses = adversaries(plain.ids, len(table), number)
        for name in ("perfect", *list(guesses)[1 + number % 7 :: 4]):
            guess = guesses[name]
            drafts = Drafts(guess, NEAR_TIE["fp32"])
            text = generate(decoder, prompt, table, eos=EOS, max_new_tokens=limit, drafts=drafts)
            assert same(text, plain), name
            assert text.passes <= 2 * plain.passes, name
            assert sum(heard.written for heard in guess.heard) in (len(plain.ids), len(plain.ids) + 1)
            fewer += name == "perfect" and text.passes < plain.passes
    assert fewer > 40


@pytest.mark.parametrize("seed", range(2))
def test_the_same_text_in_int8(mini: tuple[Decoder, np.ndarray], seed: int) -> None:
    decoder, table = mini
    rng = np.random.default_rng(seed)
    for number in range(3):
        prompt = np.asarray(table[rng.integers(0, len(table), 70)], np.float32)
        plain = generate(decoder, prompt, table, eos=EOS, max_new_tokens=30)
        for name, guess in adversaries(plain.ids, len(table), number).items():
            drafts = Drafts(guess, NEAR_TIE["int8"])
            text = generate(decoder, prompt, table, eos=EOS, max_new_tokens=30, drafts=drafts)
            assert same(text, plain), name


class Noisy:
    """A decoder whose logits depend on all tokens before, with leads near zero, and a little on how they were read."""

    inputs = outputs = ()
    all_rows = True
    noise = 0.01
    max_length = 40

    def __init__(self, vocab: int, seed: int) -> None:
        self.vocab, self.seed = vocab, seed
        self.reset()

    @property
    def length(self) -> int:
        return len(self.past)

    @property
    def free(self) -> int:
        return self.max_length - self.length

    def reset(self) -> None:
        self.past: list[tuple[int, int]] = []  # token, and how many were read with it

    def prefill(self, embeds: np.ndarray, *, rows: int = 1) -> np.ndarray:
        self.reset()
        made = []
        for row in embeds:
            self.past.append((int(row[0]), rows))
            made.append(self._row())
        return np.stack(made[-rows:])

    def step(self, embed: np.ndarray) -> np.ndarray:
        return self.read(embed)[-1]

    def read(self, embeds: np.ndarray) -> np.ndarray:
        assert len(embeds) <= self.free
        rows = []
        for row in embeds:
            self.past.append((int(row[0]), len(embeds)))
            rows.append(self._row())
        return np.stack(rows)

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length
        del self.past[length:]

    def _row(self) -> np.ndarray:
        tokens = np.array([token for token, _ in self.past])
        clean = np.random.default_rng([self.seed, zlib.crc32(tokens.tobytes())])
        logits = clean.integers(0, 12, self.vocab) * 0.01  # many leads of 0, .01 or .02
        if any(width > 1 for _, width in self.past):
            exact = zlib.crc32(np.array(self.past).tobytes())
            logits = logits + np.random.default_rng([self.seed, exact]).uniform(-self.noise, self.noise, self.vocab)
        return np.asarray(logits, np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_near_ties_are_decided_as_without_drafts(seed: int) -> None:
    vocab, changed = 40, 0
    table = np.arange(vocab, dtype=np.float32)[:, None]
    rng = np.random.default_rng(seed)
    for number in range(20):
        prompt = rng.integers(3, vocab, (rng.integers(1, 6), 1)).astype(np.float32)
        decoder = Noisy(vocab, number)
        plain = generate(decoder, prompt, table, eos=EOS, max_new_tokens=80)
        for guess in adversaries(plain.ids, vocab, number).values():
            text = generate(decoder, prompt, table, eos=EOS, max_new_tokens=80, drafts=Drafts(guess, 0.021))
            assert (text.ids, text.stopped) == (plain.ids, plain.stopped)
            assert text.passes <= 2 * plain.passes
        guess = adversaries(plain.ids, vocab, number)["all at once"]
        careless = generate(decoder, prompt, table, eos=EOS, max_new_tokens=80, drafts=Drafts(guess, 0.0))
        changed += careless.ids != plain.ids
    assert changed > 5  # the rule is needed here


@pytest.mark.parametrize("seed", range(3))
def test_where_passes_agree_a_prompt_is_read_with_a_draft(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noisy, "noise", 0.0)
    vocab, rng = 40, np.random.default_rng(seed)
    table = np.arange(vocab, dtype=np.float32)[:, None]
    for number in range(20):
        prompt = rng.integers(3, vocab, (rng.choice([1, 5, 39, 40]), 1)).astype(np.float32)  # up to the decoder's end
        decoder, limit = Noisy(vocab, number), int(rng.integers(1, 80))
        plain = generate(decoder, prompt, table, eos=EOS, max_new_tokens=limit)
        for name, guess in adversaries(plain.ids, vocab, number).items():
            text = generate(decoder, prompt, table, eos=EOS, max_new_tokens=limit, drafts=Drafts(guess, 0.0))
            assert same(text, plain), name
            assert text.passes <= plain.passes
            assert text.passes == 1 or name != "all at once"
            assert guess.heard[0].seconds == 0  # a prompt takes longer: no measure of what passes cost


def test_a_perfect_draft_saves_passes_and_an_empty_one_none() -> None:
    bundle = Bundle.load(TINY)
    script = [5, 6, 7, 8, 9, 10, 11]
    prompt = np.zeros((bundle.manifest.prompt_length(14), 16), np.float32)
    passes = {}
    for name, guess in adversaries(script, 320, 0).items():
        decoder = open_decoder(fake.open_backend(script=script), bundle)
        drafts = Drafts(guess, 0.01)
        text = generate(decoder, prompt, bundle.token_embedding(), eos=EOS, max_new_tokens=48, drafts=drafts)
        assert text.ids == tuple(script), name
        passes[name] = text.passes
    assert passes["all at once"] == passes["past the end"] == 2  # the prompt, and the first token with all others
    assert passes["empty"] == passes["one token off everywhere"] == 1 + len(script)


def test_a_draft_of_the_end_is_not_read() -> None:
    guess = Guess(lambda written: [EOS, 5, 5])
    decoder, table = Noisy(40, 1), np.arange(40, dtype=np.float32)[:, None]
    generate(decoder, table[5:8], table, eos=EOS, max_new_tokens=20, drafts=Drafts(guess, 0.1))
    assert {heard.width for heard in guess.heard} == {1}


def test_rules_hold_with_drafts_too(tiny: tuple[Decoder, np.ndarray]) -> None:
    decoder, table = tiny
    rng = np.random.default_rng(5)
    for _ in range(20):
        prompt = rng.normal(size=(9, 16)).astype(np.float32)
        rules = Rules(EOS, 40, repetition_penalty=1.4, no_repeat_ngram_size=2)
        plain = finished(write(decoder, prompt, table, rules))
        for guess in adversaries(plain.ids, len(table), 0).values():
            assert same(finished(write(decoder, prompt, table, rules, drafts=Drafts(guess, 1e-3))), plain)
        pairs = list(itertools.pairwise(plain.ids))
        assert len(set(pairs)) == len(pairs)


def finished(writing: Iterator[object]) -> Generation:
    """The value that a generator returns."""
    while True:
        try:
            next(writing)
        except StopIteration as done:
            generation: Generation = done.value
            return generation


def test_the_pieces_are_the_text(tiny: tuple[Decoder, np.ndarray]) -> None:
    decoder, table = tiny
    prompt = np.random.default_rng(1).normal(size=(9, 16)).astype(np.float32)
    plain = generate(decoder, prompt, table, eos=EOS, max_new_tokens=30)
    for drafts in (None, Drafts(adversaries(plain.ids, len(table), 0)["right, then wrong"], 1e-3)):
        pieces = list(write(decoder, prompt, table, Rules(EOS, 30), drafts=drafts))
        assert all(pieces)
        assert tuple(token.id for piece in pieces for token in piece) == plain.ids


def test_closing_stops_between_passes() -> None:
    decoder, table = Noisy(40, 1), np.arange(40, dtype=np.float32)[:, None]
    writing = write(decoder, table[5:8], table, Rules(EOS, 30))
    next(writing)
    next(writing)
    read = decoder.length
    writing.close()
    assert decoder.length == read == 5


def test_drafts_are_refused_without_the_logits_of_every_position() -> None:
    bundle = Bundle.load(TINY)
    decoder = open_decoder(fake.open_backend(script=[5]), bundle)
    decoder.all_rows = False  # type: ignore[misc]
    prompt = np.zeros((20, 16), np.float32)
    with pytest.raises(UsageError, match="every position"):
        generate(decoder, prompt, bundle.token_embedding(), eos=EOS, max_new_tokens=4, drafts=Drafts(Guess(list), 0.1))


def test_lead_leaves_the_logits_alone() -> None:
    row = np.array([0.5, 2.0, 1.75, -1.0], np.float32)
    assert lead(row, 1) == 0.25
    np.testing.assert_array_equal(row, np.array([0.5, 2.0, 1.75, -1.0], np.float32))


def test_rows_are_chosen_together_as_one_by_one() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    before, best = rows.copy(), rows.argmax(axis=1).tolist()
    for right in range(6):
        guesses = [*best[:right], *[(token + 1) % 50 for token in best[right:]]][:5]
        tokens = likeliest_rows(rows, guesses)
        expected = [likeliest(row) for row in rows[: right + 1]]
        assert [token.id for token in tokens] == [token.id for token in expected]
        np.testing.assert_allclose([t.logprob for t in tokens], [t.logprob for t in expected], atol=1e-6)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_of_a_long_pass_that_is_no_number_is_refused(bad: float) -> None:
    rows = np.zeros((3, 5), np.float32)
    rows[1, 4] = bad
    with pytest.raises(DeviceError, match="finite"):
        likeliest_rows(rows, [0, 4])
    assert likeliest_rows(rows, [1, 4])[0].id == 0  # behind a wrong guess nothing counts


def test_several_positions_are_as_many_steps(tiny: tuple[Decoder, np.ndarray]) -> None:
    decoder, table = tiny
    rng = np.random.default_rng(3)
    prompt, ids = rng.normal(size=(9, 16)).astype(np.float32), rng.integers(3, len(table), 12)
    decoder.prefill(prompt)
    steps = np.stack([decoder.step(table[token : token + 1]).copy() for token in ids])
    for width in (1, 2, 5, 12):
        with_prompt = decoder.prefill(np.concatenate([prompt, table[ids[:width]]]), rows=width + 1)
        np.testing.assert_allclose(with_prompt[1:], steps[:width], atol=1e-4)
        decoder.prefill(prompt)
        rows = [decoder.read(table[ids[at : at + width]]).copy() for at in range(0, len(ids), width)]
        np.testing.assert_allclose(np.concatenate(rows), steps, atol=1e-4)
        assert decoder.length == 9 + len(ids)


@pytest.mark.parametrize("name", ["tiny", "mini"])
def test_what_was_forgotten_leaves_no_trace(name: str, request: pytest.FixtureRequest) -> None:
    decoder, table = request.getfixturevalue(name)
    rng = np.random.default_rng(4)
    prompt, ids = np.asarray(table[rng.integers(0, len(table), 20)], np.float32), rng.integers(3, len(table), 12)
    fresh = [decoder.prefill(prompt)[0].copy(), *(decoder.step(table[token : token + 1]).copy() for token in ids)]
    decoder.read(table[rng.integers(3, len(table), 30)])
    decoder.truncate(20 + 4)
    again = [decoder.step(table[token : token + 1]).copy() for token in ids[4:]]
    np.testing.assert_array_equal(np.stack(again), np.stack(fresh[5:]))


def test_senseless_lengths_are_refused(tiny: tuple[Decoder, np.ndarray]) -> None:
    bundle = Bundle.load(TINY)
    for decoder in (tiny[0], open_decoder(fake.open_backend(script=[5]), bundle)):
        decoder.prefill(np.zeros((4, 16), np.float32))
        for wrong in (-1, 5):
            with pytest.raises(UsageError, match="keep 0 to 4"):
                decoder.truncate(wrong)
        decoder.truncate(3)
        assert decoder.length == 3
        assert decoder.free == bundle.manifest.decoder.max_length - 3
        with pytest.raises(UsageError, match=r"more|\(1 to"):
            decoder.read(np.zeros((decoder.free + 1, 16), np.float32))
