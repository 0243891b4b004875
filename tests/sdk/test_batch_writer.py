"""Texts that are written together are those that are written alone; a near tie is given back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from trrg_sdk import Bundle, UsageError
from trrg_sdk.backends import open_backend, open_decoder
from trrg_sdk.backends.batch import Batchable, BatchDecoder
from trrg_sdk.decoding import batch as batching
from trrg_sdk.decoding.batch import BatchWriter, Finished, choose, near_tie
from trrg_sdk.decoding.choice import NEAR_TIE
from trrg_sdk.decoding.greedy import generate
from trrg_sdk.decoding.rules import Rules

TINY = Path(__file__).parent / "tiny_bundle"


class Script(NamedTuple):
    """A made-up decoder of several texts: text i writes its own tokens, with a lead of its own at each place."""

    texts: Sequence[Sequence[int]]
    leads: dict[tuple[int, int], float]
    slots: int = 2
    noise: float = 0.0

    def open(self) -> FakeBatch:
        return FakeBatch(self)


class FakeBatch:
    def __init__(self, script: Script) -> None:
        self.slots = script.slots
        self._script = script
        self._state: list[list[int]] = [[0, 0] for _ in range(script.slots)]  # which text, and how far it is written
        self.widths: list[int] = []

    def free(self, slot: int) -> int:
        return 50 - self._state[slot][1]

    def prefill(self, slot: int, embeds: NDArray[np.floating]) -> NDArray[np.float32]:
        self._state[slot] = [int(embeds[0, 0]), 0]
        return self._row(slot)

    def step(self, embeds: NDArray[np.floating]) -> NDArray[np.float32]:
        self.widths.append(len(embeds))
        for slot, embed in enumerate(embeds):
            text, written = self._state[slot]
            assert embed[0] == self._script.texts[text][written], "the token of another text was read"
            self._state[slot][1] += 1
        return np.stack([self._row(slot) for slot in range(len(embeds))]) + np.float32(
            self._script.noise * (len(embeds) > 1)
        )

    def move(self, source: int, target: int) -> None:
        self._state[target] = list(self._state[source])

    def _row(self, slot: int) -> NDArray[np.float32]:
        text, written = self._state[slot]
        row = np.zeros(10, np.float32)
        row[self._script.texts[text][written]] = self._script.leads.get((text, written), 5.0)
        return row


def write_all(script: Script) -> tuple[dict[int, Finished], FakeBatch]:
    decoder = script.open()
    table = np.arange(10, dtype=np.float32)[:, None]
    writer = BatchWriter(decoder, table, Rules(9, 8), near_tie=0.5)
    waiting = list(range(len(script.texts)))
    finished: dict[int, Finished] = {}
    while waiting or writer.active:
        while waiting and writer.room:
            key = waiting.pop(0)
            writer.admit(key, np.asarray([[key]], np.float32))
        finished.update({one.key: one for one in writer.advance()})
    return finished, decoder


def test_a_finished_text_leaves_and_the_next_enters() -> None:
    texts = [[1, 2, 3, 4, 5, 9], [6, 9], [7, 8, 9], [9], [3] * 8 + [9], [4] * 20]
    finished, decoder = write_all(Script(texts, {}))
    made = [text for key in range(6) if (text := finished[key].generation)]  # none was written alone
    assert [text.ids for text in made] == [(1, 2, 3, 4, 5), (6,), (7, 8), (), (3,) * 8, (4,) * 8]
    assert [text.stopped for text in made] == ["eos"] * 5 + ["length"]
    assert decoder.widths.count(2) > decoder.widths.count(1)


@pytest.mark.parametrize("lead", [0.4, 0.0, float("nan"), float("inf")])
def test_a_lead_that_is_not_trusted_gives_the_text_back(lead: float) -> None:
    finished, _ = write_all(Script([[1, 2, 9], [3, 4, 5, 9], [6, 9]], {(1, 2): lead}))
    assert [finished[key].generation is None for key in range(3)] == [False, True, False]


def test_a_near_tie_of_the_prompt_is_trusted_because_it_is_read_alone() -> None:
    finished, _ = write_all(Script([[1, 2, 9], [3, 9]], {(1, 0): 0.1}))
    assert [finished[key].generation is None for key in range(2)] == [False, False]


def test_the_choice_of_many_rows_is_that_of_each() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 300)).astype(np.float32) * 4
    chosen = choose(rows.copy())
    for row, token, logprob, lead in zip(rows, chosen.tokens, chosen.logprobs, chosen.leads, strict=True):
        assert token == row.argmax()
        assert logprob == pytest.approx(batching.likeliest(row).logprob, abs=1e-6)
        assert lead == np.sort(row)[-1] - np.sort(row)[-2]


def opened(slots: int) -> tuple[Bundle, BatchDecoder]:
    bundle = Bundle.load(TINY)
    decoder = open_decoder(open_backend(device="cpu", threads=1), bundle)
    assert isinstance(decoder, Batchable)
    made = decoder.batch(slots)
    assert made is not None
    return bundle, made


def test_texts_of_different_lengths_grow_together_as_alone() -> None:
    bundle, decoder = opened(4)
    table, dice = np.asarray(bundle.token_embedding(), np.float32), np.random.default_rng(1)
    rules = Rules(bundle.manifest.tokenizer.eos_token_id, 40)
    prompts = [table[dice.integers(0, len(table), length)] for length in dice.integers(1, 110, 25)]
    alone = open_decoder(open_backend(device="cpu", threads=1), bundle)
    expected = [generate(alone, prompt, table, eos=rules.eos, max_new_tokens=40) for prompt in prompts]
    writer = BatchWriter(decoder, table, rules, near_tie=NEAR_TIE["fp32"])
    waiting, got = list(enumerate(prompts)), {}
    while waiting or writer.active:
        while waiting and writer.room:
            writer.admit(*waiting.pop(0))
        got.update({one.key: one.generation for one in writer.advance()})
    trusted = [key for key in got if got[key] is not None]
    assert len(trusted) > 20
    for key in trusted:
        made = got[key]
        assert made is not None
        assert (made.ids, made.stopped) == (expected[key].ids, expected[key].stopped)
        np.testing.assert_allclose(made.logprobs, expected[key].logprobs, atol=1e-4)
    assert {one.stopped for one in expected} >= {"length"}
    assert len({len(one.ids) for one in expected}) > 1, "the full buffer ends long prompts earlier"


def test_wrong_shapes_and_full_slots_are_refused() -> None:
    bundle, decoder = opened(2)
    width, room = bundle.manifest.decoder.hidden_size, bundle.manifest.decoder.max_length
    for wrong in (np.zeros((room + 1, width)), np.zeros((0, width)), np.zeros((3, width + 1))):
        with pytest.raises(UsageError):
            decoder.prefill(0, wrong)
    with pytest.raises(UsageError):
        decoder.step(np.zeros((3, width)))
    decoder.prefill(0, np.zeros((room, width)))
    assert decoder.free(0) == 0
    with pytest.raises(UsageError, match="no position is free"):
        decoder.step(np.zeros((1, width)))


def test_rows_that_round_differently_together_need_a_larger_lead() -> None:
    table = np.zeros((10, 1), np.float32)
    quiet, noisy = Script([[0] * 99], {}), Script([[0] * 99], {}, noise=1e-6)
    assert near_tie(quiet.open(), table, "int8") == NEAR_TIE["fp32"]
    assert near_tie(noisy.open(), table, "int8") == NEAR_TIE["int8"]
    assert near_tie(noisy.open(), table, "bf16") == float("inf"), "a precision that was never measured is not trusted"
