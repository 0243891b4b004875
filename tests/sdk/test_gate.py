"""The gate: what a file says of itself, and what the image shows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trrg_sdk.dicom import Radiograph, load
from trrg_sdk.gate import check
from trrg_sdk.photometry import look

DX = "1.2.840.10008.5.1.4.1.1.1.1"
SECONDARY = "1.2.840.10008.5.1.4.1.1.7"


def drawn_chest(size: int = 256) -> NDArray[np.float32]:
    """A chest of a few ellipses: dark air and lungs, bright mediastinum and abdomen, shoulders; noise on top."""
    row, column = np.mgrid[0:size, 0:size] / size

    def ellipse(y: float, x: float, height: float, width: float) -> NDArray[Any]:
        distance: NDArray[Any] = ((row - y) / height) ** 2 + ((column - x) / width) ** 2
        soft: NDArray[Any] = 1 / (1 + np.exp(np.clip(8 * (distance - 1), -50, 50)))
        return soft

    body = np.maximum(ellipse(0.75, 0.5, 0.75, 0.47), ellipse(0.2, 0.5, 0.12, 0.45))
    film = 0.75 * body * (1 - 0.75 * ellipse(0.45, 0.28, 0.33, 0.15)) * (1 - 0.75 * ellipse(0.45, 0.73, 0.33, 0.14))
    film += 0.25 * ellipse(0.5, 0.52, 0.6, 0.07) + 0.2 * ellipse(0.58, 0.58, 0.14, 0.12)
    noisy = film + np.random.default_rng(0).normal(0, 0.01, film.shape)
    return np.asarray(noisy, dtype=np.float32)


def film(**changes: Any) -> Radiograph:
    original = Radiograph(pixels=drawn_chest(), modality="DX", sop_class_uid=DX, body_part="CHEST", view_position="PA")
    return dataclasses.replace(original, **changes)


def codes(radiograph: Radiograph) -> list[str]:
    reasons = check(radiograph)
    assert all(reason.message.endswith(".") and reason.action.endswith(".") for reason in reasons)
    return [reason.code for reason in reasons]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"modality": "CR"},
        {"modality": "RG", "sop_class_uid": SECONDARY},
        {"modality": ""},
        {"body_part": ""},
        {"body_part": "THORAX"},
        {"body_part": "CHEST AP"},
        {"view_position": "AP"},
        {"view_position": ""},
        {"modality": "", "sop_class_uid": "", "body_part": "", "view_position": ""},
    ],
)
def test_chest_passes(changes: dict[str, Any]) -> None:
    assert codes(film(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"modality": "CT"}, ["wrong_modality"]),
        ({"modality": "OT", "sop_class_uid": SECONDARY}, ["wrong_modality"]),
        ({"modality": "", "sop_class_uid": SECONDARY}, ["modality_missing"]),
        ({"sop_class_uid": DX + ".1"}, ["for_processing"]),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.2"}, ["wrong_object"]),
        ({"body_part": "HAND"}, ["wrong_body_part"]),
        ({"body_part": "TSPINE"}, ["wrong_body_part"]),
        ({"view_position": "LL"}, ["lateral_view"]),
        ({"view_position": "LATERAL"}, ["lateral_view"]),
        ({"view_position": "RLD"}, ["unsupported_view"]),
        ({"body_part": "HAND", "view_position": "LL"}, ["wrong_body_part", "lateral_view"]),
        ({"pixels": drawn_chest(100)}, ["too_small"]),
        ({"pixels": drawn_chest()[:, :100]}, ["too_small"]),
        ({"modality": "MR", "pixels": -drawn_chest()}, ["wrong_modality"]),
        ({"pixels": 1 - drawn_chest()}, ["inverted"]),
        ({"pixels": np.rot90(drawn_chest())}, ["turned"]),
        ({"pixels": np.rot90(drawn_chest(), 3)}, ["turned"]),
    ],
)
def test_reasons(changes: dict[str, Any], expected: list[str]) -> None:
    assert codes(film(**changes)) == expected


@pytest.mark.parametrize("dark", [True, False])
def test_nearly_blank(dark: bool) -> None:
    pixels = np.zeros((256, 256), np.float32)
    pixels[100:140, 100:140] = drawn_chest(40)
    assert codes(film(pixels=pixels if dark else 1 - pixels)) == ["mostly_blank"]


def test_constant_pixels_do_not_crash() -> None:
    assert codes(film(pixels=np.zeros((256, 256), np.float32))) == ["mostly_blank"]


def test_no_chest_at_all() -> None:
    row, column = np.mgrid[0:256, 0:256] / 256
    stripes = np.sin(20 * row + 9 * column) + np.sin(15 * column)
    assert codes(film(pixels=stripes.astype(np.float32))) == ["not_chest_like"]
    noise = np.random.default_rng(0).random((256, 256), dtype=np.float32)
    assert codes(film(pixels=noise)) == ["not_chest_like"]


def test_polarity_is_antisymmetric_and_blind_to_scale() -> None:
    pixels = drawn_chest()
    seen, inverted = look(pixels), look(3 - 7 * pixels)
    assert seen.polarity > 3
    assert inverted.polarity == pytest.approx(-seen.polarity, rel=0.01)
    assert inverted.distance_inverted == pytest.approx(seen.distance, rel=0.01)


def test_collimator_border_does_not_matter() -> None:
    framed = np.pad(drawn_chest(), ((30, 60), (50, 20)))
    assert look(framed).polarity == pytest.approx(look(drawn_chest()).polarity, rel=0.15)


def test_reads_a_large_film_as_a_small_one() -> None:
    assert look(np.kron(drawn_chest(), np.ones((6, 6), np.float32))).upright == pytest.approx(
        look(drawn_chest()).upright, rel=0.05
    )


def test_phantoms_pass_unless_inverted_or_turned() -> None:
    phantom = pytest.importorskip("trrg_train.data.phantom", exc_type=ImportError)
    for index in range(6):
        study = phantom.make_study(11, index, size=256)
        pixels = study.pixels.astype(np.float32)
        shown = pixels.max() - pixels if study.photometric == "MONOCHROME1" else pixels
        assert codes(load(shown)) == []
        assert codes(load(shown.max() - shown)) == ["inverted"]
        assert codes(load(shown[::-1])) == ["turned"]


def test_real_films(shared_data: Path) -> None:
    """A sample; tests/benchmarks/gate_photometry.py measures all of them."""
    from PIL import Image

    files = sorted((shared_data / "images").glob("*/*.jpg"))[::20]
    images = [np.asarray(Image.open(file)) for file in files]
    refused = [file.name for file, image in zip(files, images, strict=True) if check(load(image))]
    assert refused == []
    assert {reason.code for image in images for reason in check(load(255 - image))} == {"inverted"}
    assert all(check(load(255 - image)) for image in images)
