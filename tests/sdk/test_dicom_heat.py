from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.sdk.chest_dicom import MARK
from tests.sdk.handmade_reports import SOP_UID, full_picture, full_reading, full_report, score
from tests.sdk.names import NAMES
from tests.sdk.peers import dciodvfy_errors
from trrg_sdk.errors import InputError
from trrg_sdk.outputs import open_output
from trrg_sdk.outputs.deidentify import deidentify
from trrg_sdk.outputs.overlay import grey, overlaid
from trrg_sdk.reading import Picture, Reading
from trrg_sdk.report import ClueScores


def written(reading: Reading) -> bytes:
    return open_output("heat").render(reading)


def parsed(reading: Reading) -> Dataset:
    return pydicom.dcmread(io.BytesIO(written(reading)))


def reading_with(*clues: str) -> Reading:
    """A reading in which these clues are present."""
    scores = ClueScores(tuple(score(name, 0.9 if name in clues else 0.1) for name in ("Pleural Effusion", "Edema")))
    return dataclasses.replace(full_reading(), report=dataclasses.replace(full_report(), clues=scores))


@pytest.mark.parametrize("clues", [(), ("Edema",), ("Pleural Effusion", "Edema")], ids=["none", "one", "two"])
def test_one_frame_a_present_clue(clues: tuple[str, ...], tmp_path: Path) -> None:
    reading = reading_with(*clues)
    dataset = parsed(reading)
    assert dataset.NumberOfFrames == max(1, len(clues))
    assert dataset.pixel_array.shape[-1] == 3
    assert all(f"{name} 0.90" in dataset.DerivationDescription for name in clues)
    assert dciodvfy_errors(written(reading), tmp_path) == []


@pytest.mark.parametrize("script", NAMES)
def test_peers_accept_every_name(script: str, tmp_path: Path) -> None:
    reading = full_reading(patient_name=NAMES[script][1])
    assert dciodvfy_errors(written(reading), tmp_path) == []
    assert str(parsed(reading).PatientName).rstrip("=") == NAMES[script][1].rstrip("=")


def test_it_is_derived_from_the_image_in_its_study() -> None:
    dataset = parsed(full_reading())
    assert dataset.StudyInstanceUID == "2.25.1"
    assert dataset.SourceImageSequence[0].ReferencedSOPInstanceUID == SOP_UID
    assert list(dataset.ImageType)[:2] == ["DERIVED", "SECONDARY"]
    assert dataset.SeriesInstanceUID != "2.25.1.1"
    assert written(full_reading()) == written(full_reading())


@pytest.mark.parametrize(("said", "expected"), [("NO", "NO"), ("YES", "YES"), ("", "YES")])
def test_burned_in_annotation_is_no_only_where_the_file_says_so(said: str, expected: str) -> None:
    assert parsed(full_reading(burned_in_annotation=said)).BurnedInAnnotation == expected


def test_a_forced_clue_is_not_drawn() -> None:
    assert [clue.name for clue in full_report().clues if clue.forced] == ["Edema"]
    assert "Edema" not in parsed(full_reading()).DerivationDescription


def test_the_colour_lies_on_the_patch_and_nowhere_else() -> None:
    picture = full_picture()
    plain, drawn = grey(picture, longest_side=512).astype(int), overlaid(picture, "Pleural Effusion", longest_side=512)
    redder = (drawn[..., 0].astype(int) - drawn[..., 2]) - (plain[..., 0] - plain[..., 2])
    top, left, bottom, right = (round(edge) for edge in picture.patch(4, 1, rows=6, columns=6))
    inside = np.zeros(plain.shape[:2], bool)
    inside[top + 1 : bottom - 1, left + 1 : right - 1] = True
    assert redder[inside].min() > 100
    outside = np.ones_like(inside)
    outside[top - 1 : bottom + 1, left - 1 : right + 1] = False
    assert redder[outside].max() < 30


def test_a_large_image_is_reduced_to_square_pixels() -> None:
    picture = Picture(np.zeros((600, 1000), np.float32), {}, box=(0, 0, 1, 1), aspect=2.0)
    assert grey(picture, longest_side=512).shape == (512, 427, 3)


def test_without_the_image_there_is_no_heat_map() -> None:
    with pytest.raises(InputError) as caught:
        written(dataclasses.replace(full_reading(), picture=None))
    assert caught.value.code == "no_picture"


def test_a_deidentified_one_holds_nothing_of_the_patient(tmp_path: Path) -> None:
    content = written(deidentify(full_reading(), b"k" * 32))
    assert MARK.encode() not in content
    assert SOP_UID.encode() not in content
    assert dciodvfy_errors(content, tmp_path) == []
