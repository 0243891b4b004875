from __future__ import annotations

from collections.abc import Sequence

import pytest

from trrg_sdk.errors import InputError
from trrg_sdk.sentences import Written, read_tokens

WORDS = ["FINDINGS:", " There", " is", "  edema", ".", " No", " effusion.", " IMPRESSION:", " Ed", "ema", ".", " Maybe"]


def decode(ids: Sequence[int]) -> str:
    return "".join(WORDS[index] for index in ids)


def written(count: int, stopped: str) -> Written:
    logprobs = [-float(index) for index in range(count)]
    return read_tokens(range(count), logprobs, stopped=stopped, decode=decode)  # type: ignore[arg-type]  # a str


def test_each_sentence_has_the_mean_of_its_own_tokens() -> None:
    sentences = written(11, "eos").sentences
    assert [item.section for item in sentences] == ["findings", "findings", "impression"]
    assert [item.text.split() for item in sentences] == [["There", "is", "edema."], ["No", "effusion."], ["Edema."]]
    assert [item.logprob for item in sentences] == [-(1 + 2 + 3 + 4) / 4, -(5 + 6) / 2, -(8 + 9 + 10) / 3]


def test_half_a_sentence_is_removed_after_the_limit_only() -> None:
    cut = written(12, "length")
    assert [item.text for item in cut.sentences][-1] == "Edema."
    assert cut.text.endswith("IMPRESSION: Edema.")
    assert "longest length" in cut.notes[0]
    whole = written(12, "eos")
    assert whole.sentences[-1].text == "Maybe"
    assert whole.notes == ()


def test_a_complete_sentence_survives_the_limit() -> None:
    complete = written(5, "length")
    assert len(complete.sentences) == 1
    assert complete.notes


def test_a_heading_without_a_sentence_goes_with_the_cut() -> None:
    assert written(9, "length").text == "FINDINGS: There is  edema. No effusion."


@pytest.mark.parametrize(("count", "stopped"), [(0, "eos"), (1, "eos"), (3, "length")])
def test_no_sentence_is_an_error(count: int, stopped: str) -> None:
    with pytest.raises(InputError) as caught:
        written(count, stopped)
    assert caught.value.code == "empty_report"


@pytest.mark.parametrize(
    ("raw", "text", "noted"),
    [
        ("Findings: No edema.", "FINDINGS: No edema.", False),
        ("No edema. IMPRESSION: Normal.", "No edema. IMPRESSION: Normal.", False),
        ("INDICATION: Fall from a horse. FINDINGS: No edema.", "FINDINGS: No edema.", True),
        ("IMPRESSION: 1. No edema. 2. Effusion.", "IMPRESSION: No edema. Effusion.", True),
    ],
)
def test_the_text_is_exactly_its_sentences(raw: str, text: str, noted: bool) -> None:
    made = read_tokens(range(len(raw)), [-1.0] * len(raw), stopped="eos", decode=lambda ids: raw[: len(ids)])
    assert made.text == text
    assert bool(made.notes) == noted
