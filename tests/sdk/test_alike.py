"""Whether passes of any width agree, and what follows from it: drafts then change no token and need no second look."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from trrg_sdk.backends import open_backend, open_decoder
from trrg_sdk.bundle import Bundle
from trrg_sdk.decoding.alike import passes_agree

VOCAB = 40


class Steps:
    """A decoder whose logits are the sum of what it read; passes of some widths are off in the last place."""

    all_rows = True

    def __init__(self, *, off: Sequence[int] = (), room: int = 64) -> None:
        self.rows: list[np.ndarray] = []
        self.off, self.room = off, room

    @property
    def length(self) -> int:
        return len(self.rows)

    @property
    def free(self) -> int:
        return self.room - len(self.rows)

    def reset(self) -> None:
        self.rows = []

    def prefill(self, embeds: np.ndarray, *, rows: int = 1) -> np.ndarray:
        self.reset()
        return self.read(embeds)[-rows:]

    def step(self, embed: np.ndarray) -> np.ndarray:
        return self.read(embed)[-1]

    def read(self, embeds: np.ndarray) -> np.ndarray:
        off = np.float32(1e-6 if len(embeds) in self.off else 0.0)
        made = []
        for row in embeds:
            self.rows.append(row + off)
            made.append(np.sum(self.rows, axis=0, dtype=np.float32))
        return np.stack(made)

    def truncate(self, length: int) -> None:
        del self.rows[length:]


@pytest.mark.parametrize("off", [(), (1,), (2,), (5,), (16,), (17,), (9,), (11,), (50,)])
def test_one_width_that_differs_is_found(off: tuple[int, ...]) -> None:
    """The last three are of a prompt, of 8 and of 47 positions, with a draft behind it."""
    table = np.random.default_rng(0).normal(size=(VOCAB, VOCAB)).astype(np.float32)
    decoder = Steps(off=off)
    assert passes_agree(decoder, table) is (not off)


def test_a_decoder_without_room_to_try_is_not_trusted() -> None:
    table = np.eye(VOCAB, dtype=np.float32)
    assert not passes_agree(Steps(room=16), table)
    assert passes_agree(Steps(room=32), table)


def test_the_embedded_decoder_is_left_as_it_was() -> None:
    """Whatever is found on this machine, texts are the same before and after."""
    bundle = Bundle.embedded()
    decoder, table = open_decoder(open_backend(device="cpu", threads=1), bundle), bundle.token_embedding()
    before = decoder.prefill(table[5:12]).copy()
    assert isinstance(passes_agree(decoder, table), bool)
    assert np.array_equal(decoder.prefill(table[5:12]), before)
