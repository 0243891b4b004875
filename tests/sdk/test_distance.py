"""The distance to the training films: what it measures, and what becomes of an image that is too far."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.benchmarks.drawn_bodies import BODIES
from tests.sdk.chest_dicom import chest_bytes, chest_pixels
from tests.sdk.site_folder import REPOSITORY, TEXT, TINY, put
from trrg_sdk import BundleError, RefusedError, Report, Reporter
from trrg_sdk.backends import fake
from trrg_sdk.bundle import Bundle, write_manifest
from trrg_sdk.cli import main
from trrg_sdk.dicom import load
from trrg_sdk.distance import THUMB, Distance, open_judge, thumbnail
from trrg_sdk.gate_specs import DistanceSpec
from trrg_sdk.manifest import parse_manifest
from trrg_sdk.preprocess import Preprocess

WIDTH = 12  # of the tiny bundle's patches
ODD = {"PixelData": np.roll(chest_pixels(), 14, axis=1).tobytes(), "ViewPosition": "PA"}
"""A chest that stands aside: nothing but the distance minds."""


def model_input(content: bytes) -> np.ndarray:
    image = load(content)
    return Preprocess(size=16).apply(image.pixels, spacing_mm=image.pixel_size)


def arrays() -> dict[str, np.ndarray]:
    """One training set whose films all look like the drawn chest; the encoder's vectors do not matter."""
    means, whiten = np.zeros((1, WIDTH), np.float32), np.eye(WIDTH, dtype=np.float32)
    return {"means": means, "whiten": whiten, "thumbnails": thumbnail(model_input(chest_bytes()))[None]}


SPEC = DistanceSpec("distance.npz", WIDTH, 1, 1, 1e6, 0.1, 1.0, {"train/a": 4, "val/a": 2})


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A tiny bundle with these arrays, opened with the fake backend."""
    script = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    opened = fake.open_backend(script=script)
    monkeypatch.setattr("trrg_sdk.reporter.open_backend", lambda **_: opened)

    def build(spec: DistanceSpec = SPEC, **changes: np.ndarray) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(TINY, folder)
        np.savez(folder / spec.file, **{**arrays(), **changes})  # type: ignore[arg-type]  # numpy types its options
        write_manifest(folder, dataclasses.replace(Bundle.load(TINY).manifest, distance=spec))
        return folder

    return build


def test_the_encoders_distance_is_that_to_the_nearest_set() -> None:
    means = np.array([[0, 0], [10, 0]], np.float32)
    whiten = np.array([[2, 0], [0, 1]], np.float32)
    thumbnails = np.zeros((1, THUMB**2), np.float32)
    distance = Distance(means, whiten, thumbnails)
    patches = np.array([[0, 0], [1, 0], [10, 4], [4, 3]], np.float32)
    far = distance.of(patches, np.zeros((4, THUMB**2), np.float32))
    np.testing.assert_allclose(far.encoder, np.sqrt([0, 2, 8, (64 + 9) / 2]), rtol=1e-6)
    assert (far.thumbnail == 0).all()


def test_thumbnails_are_compared_without_brightness_and_contrast() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 48, 48)).astype(np.float32)
    shown, again, inverted = thumbnail(image), thumbnail(3 * image + 5), thumbnail(-image)
    distance = Distance(np.zeros((1, 2), np.float32), np.eye(2, dtype=np.float32), np.stack([shown, -shown[::-1]]))
    far = distance.of(np.zeros((3, 2), np.float32), np.stack([shown, again, inverted])).thumbnail
    np.testing.assert_allclose(far[:2], 0, atol=2e-3)
    assert far[2] > 1


def test_a_film_that_is_near_is_reported_and_one_that_is_far_is_not(make: Callable[..., Path]) -> None:
    reporter = Reporter(make())
    assert reporter.report(chest_bytes()).gate.status == "accepted"
    with pytest.raises(RefusedError) as caught:
        reporter.report(chest_bytes(**ODD))
    assert caught.value.code == "unlike_training"
    assert re.search(r"is \d+\.\d\d times as far from the training films", str(caught.value))
    (outcome,) = reporter.report_many([chest_bytes(**ODD)])
    assert isinstance(outcome.error, RefusedError) and outcome.error.code == "unlike_training"


def test_the_encoders_distance_counts_as_well(make: Callable[..., Path]) -> None:
    reporter = Reporter(make(dataclasses.replace(SPEC, encoder_scale=1e-6)))
    with pytest.raises(RefusedError) as caught:
        reporter.report(chest_bytes())
    assert caught.value.code == "unlike_training"


def test_an_accepted_one_is_reported_and_the_report_says_so(make: Callable[..., Path]) -> None:
    report = Reporter(make(), accept=["unlike_training"]).report(chest_bytes(**ODD))
    assert report.gate.status == "overridden"
    assert [found.code for found in report.gate.overridden] == ["unlike_training"]


def test_a_far_image_gives_way_to_the_next_of_its_study(make: Callable[..., Path], tmp_path: Path) -> None:
    study = tmp_path / "study"
    put(study / "a", chest_bytes(uid="2.25.1", **ODD))
    put(study / "b", chest_bytes(uid="2.25.2", ViewPosition="AP"))
    bundle = make()
    for accept in ((), ("unlike_training",)):
        report = Reporter(bundle, accept=accept).report(study)
        assert [image.sop_instance_uid for image in report.images if image.used] == ["2.25.2"]
        assert [found.code for found in report.gate.reasons] == ["unlike_training"]
        assert report.gate.status == "accepted"
    words = ["batch", study, "--out", tmp_path / "out", "--format", "json", "--bundle", bundle]
    assert main([str(word) for word in words]) == 0
    (path,) = (tmp_path / "out" / "reports").iterdir()
    report = Report.from_json(path.read_bytes())
    assert [image.sop_instance_uid for image in report.images if image.used] == ["2.25.2"]
    assert [found.code for found in report.gate.reasons] == ["unlike_training"]


@pytest.mark.parametrize(
    "changes",
    [
        {"means": np.zeros((2, WIDTH), np.float32)},
        {"whiten": np.eye(WIDTH)},
        {"thumbnails": np.zeros((1, 9), np.float32)},
    ],
)
def test_numbers_that_are_not_what_the_manifest_says_are_refused(
    make: Callable[..., Path], changes: dict[str, np.ndarray]
) -> None:
    with pytest.raises(BundleError, match="distance.npz: expected float32 arrays"):
        Reporter(make(**changes))


def test_a_file_that_is_no_archive_is_refused(make: Callable[..., Path]) -> None:
    folder = make()
    (folder / "distance.npz").write_bytes(b"nothing")
    write_manifest(folder, parse_manifest((folder / "manifest.json").read_text()))
    with pytest.raises(BundleError, match="distance.npz cannot be read"):
        open_judge(Bundle.load(folder))


@pytest.mark.parametrize(
    "changes", [{"encoder_scale": 0.0}, {"thumbnail_scale": -1.0}, {"quantile": 1.5}, {"components": 0}]
)
def test_a_specification_that_makes_no_sense_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        dataclasses.replace(SPEC, **changes)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("body", ["hand", "skull, from the front", "skull, from the side", "mammogram", "knee"])
def test_the_embedded_bundle_reports_a_phantom_and_no_drawn_body(body: str) -> None:
    """Drawn: there is no real one to try. tests/benchmarks/gate_embedding.py counts over many of them."""
    reporter = Reporter(device="cpu")
    assert reporter.bundle.manifest.distance is not None
    image = BODIES[body](np.random.default_rng(1))
    with pytest.raises(RefusedError):
        reporter.report(image)
    assert reporter.report(REPOSITORY / "examples" / "data" / "phantom_pa.dcm").gate.status == "accepted"
