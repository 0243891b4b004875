from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trrg_sdk.clues import PERCEIVED, Calibration, Clue, ClueEncoder, EncodedClues, heat_maps, heat_peaks, sigmoid
from trrg_sdk.errors import UsageError

CALIBRATION = Calibration(scale=2.0, offset=0.5, threshold=0.3)
HERNIA = Clue("Hiatal Hernia", "There is a hiatal hernia.", "There is no hiatal hernia.")


def bank() -> EncodedClues:
    ones = np.ones(2, dtype=np.float32)
    return EncodedClues(
        ("Edema", "Fracture"), np.eye(2, 4, dtype=np.float32), -np.eye(2, 4, dtype=np.float32), ones, ones, ones * 0.4
    )


def numbered(texts: Sequence[str]) -> NDArray[np.float32]:
    return np.arange(len(texts) * 4, dtype=np.float32).reshape(-1, 4)


def test_custom_clues_stand_behind_the_bundled_ones() -> None:
    other = Clue("Air Under Diaphragm", "There is free air.", "There is no free air.", threshold=0.7)
    both = bank().extended([HERNIA, other], encode=numbered, calibration=CALIBRATION)
    assert both.names == ("Edema", "Fracture", "Hiatal Hernia", "Air Under Diaphragm")
    np.testing.assert_array_equal(both.positive[2:], numbered("abcd")[:2])
    np.testing.assert_array_equal(both.negative[2:], numbered("abcd")[2:])
    np.testing.assert_allclose(both.threshold, [0.4, 0.4, 0.3, 0.7], rtol=1e-6)
    np.testing.assert_array_equal(both.scale, np.float32([1, 1, 2, 2]))
    assert {array.dtype for array in both.fusion_inputs(both.override(None)).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["Edema", "Hiatal Hernia"])
def test_a_name_is_used_once(name: str) -> None:
    clues = [HERNIA, Clue(name, "a", "b")]
    with pytest.raises(UsageError, match=name):
        bank().extended(clues, encode=numbered, calibration=CALIBRATION)


@pytest.mark.parametrize(
    "values",
    [("", "a", "b"), ("x", " ", "b"), ("x", "a", ""), ("x", "a", "a "), ("x", "a", "b", 0.0), ("x", "a", "b", 1.0)],
)
def test_a_clue_that_cannot_be_asked(values: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError):
        Clue(*values)


def test_override_marks_what_is_forced() -> None:
    np.testing.assert_array_equal(bank().override({"Fracture": 0.0}), [[PERCEIVED, 0.0]])
    np.testing.assert_array_equal(bank().override(None), [[PERCEIVED, PERCEIVED]])


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), True])
def test_override_takes_probabilities_only(value: float) -> None:
    with pytest.raises(UsageError, match="0 to 1"):
        bank().override({"Edema": value})


def test_override_names_the_clues_there_are() -> None:
    with pytest.raises(UsageError, match="Edema, Fracture"):
        bank().override({"edema": 0.5})


def test_scores_show_the_forced_value_and_compare_it_with_the_threshold() -> None:
    clues = bank()
    scores = clues.scores(np.float32([-3.0, 3.0]), override=clues.override({"Edema": 0.9}))
    assert scores["Edema"].probability == 0.9
    assert scores["Edema"].present
    assert scores["Edema"].forced
    assert scores["Fracture"].probability == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-6)
    assert not scores["Fracture"].forced


def test_a_score_at_its_threshold_is_present() -> None:
    clues = bank()
    assert clues.scores(np.float32([0, 0]), override=clues.override({"Edema": 0.4}))["Edema"].present
    assert not clues.scores(np.float32([0, 0]), override=clues.override({"Edema": 0.39999}))["Edema"].present


def test_sigmoid_does_not_overflow() -> None:
    np.testing.assert_allclose(sigmoid(np.float32([-1e4, 0, 1e4])), [0, 0.5, 1])


def test_prompts_are_padded_on_the_right_and_masked() -> None:
    seen: list[Mapping[str, NDArray[np.int64]]] = []

    def run(inputs: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.float32]]:
        seen.append(inputs)
        return {"clue_joint": np.zeros((2, 4), np.float32)}

    encoder = ClueEncoder(run, tokenize=lambda text: [len(word) for word in text.split()], pad_id=7, max_length=3)
    encoder.encode(["a bb ccc", "dd"])
    np.testing.assert_array_equal(seen[0]["input_ids"], [[1, 2, 3], [2, 7, 7]])
    np.testing.assert_array_equal(seen[0]["attention_mask"], [[1, 1, 1], [1, 0, 0]])
    assert seen[0]["input_ids"].dtype == np.int64
    with pytest.raises(UsageError, match="1 to 3 tokens"):
        encoder.encode(["a", "b c d e"])
    assert len(seen) == 1


def test_heat_maps_are_laid_out_row_by_row() -> None:
    heat = np.zeros((2, 6), np.float32)
    heat[0, 4] = 0.75
    heat[1, 0] = 0.5
    maps = heat_maps(heat, names=("Edema", "Fracture"), grid=(2, 3))
    assert maps["Edema"].shape == (2, 3)
    peaks = heat_peaks(maps)
    assert (peaks["Edema"].row, peaks["Edema"].column, peaks["Edema"].probability) == (1, 1, 0.75)
    assert (peaks["Fracture"].row, peaks["Fracture"].column) == (0, 0)
    assert (peaks["Edema"].rows, peaks["Edema"].columns) == (2, 3)
