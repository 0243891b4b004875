"""The export fits the gate's distance to the training films by itself, and a finished bundle can be fitted anew."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime_genai")

from threadpoolctl import threadpool_limits

from tests.export.tiny import FILM_SETS, SIZE, write_films
from trrg_export import build
from trrg_export.build import ExportOptions, export_bundle
from trrg_export.cli import main
from trrg_export.distance import Seen, add_distance, centres, fit, look, varied_too
from trrg_sdk.bundle import Bundle, write_manifest
from trrg_sdk.distance import THUMB, open_judge
from trrg_sdk.errors import UsageError
from trrg_sdk.manifest import parse_manifest
from trrg_train.models.checkpoint import load_checkpoint
from trrg_train.models.stored import FILMS


@pytest.fixture(scope="module")
def films(tiny_checkpoint: Path) -> dict[str, np.ndarray]:
    kept = load_checkpoint(tiny_checkpoint).films()
    assert kept is not None
    return kept


def test_an_export_fits_the_distance_and_says_on_what(fp32_bundle: Path, films: dict[str, np.ndarray]) -> None:
    bundle = Bundle.load(fp32_bundle)
    spec = bundle.manifest.distance
    assert spec is not None and spec.films == FILM_SETS and spec.sets == 2
    assert spec.quantile > 0.9
    judge = open_judge(bundle)
    assert judge is not None
    near = judge.distance.of(*look(bundle, films["val/drawn"]))
    assert (near.together(judge.scales) < 1).mean() > 0.8, "the limit is a quantile of these films and their variants"
    far = judge.distance.of(*look(bundle, 255 - films["val/drawn"]))
    assert (far.together(judge.scales) > 1).all()
    card = (fp32_bundle / "model_card.md").read_text()
    assert "Images that are far from the training films are refused." in card
    assert "24 of drawn, 12 of other" in card and "Patients younger than 18 years are refused." in card


def test_a_checkpoint_without_films_gives_a_bundle_that_says_so(
    fp32_bundle: Path, tiny_checkpoint: Path, films: dict[str, np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.load(fp32_bundle)
    older = tiny_checkpoint.with_name("older")
    shutil.copytree(tiny_checkpoint, older, ignore=shutil.ignore_patterns(FILMS))
    checkpoint = load_checkpoint(older)
    assert checkpoint.films() is None
    site = type("Site", (), {"checkpoint": checkpoint, "reference": None})()
    with caplog.at_level(logging.WARNING):
        extended = build._extended(bundle, site, ExportOptions(draft_reports=None))
    assert extended.manifest.distance is None
    assert "does not compare images with the training films" in caplog.text
    with pytest.raises(UsageError, match="trrg-train films CONFIG"):
        export_bundle(older, older.with_name("bundle"), ExportOptions(films=older / "none"))
    path = write_films(older / "other", {**checkpoint.meta.preprocess, "size": 32})
    with pytest.raises(UsageError, match="preprocessed otherwise"):
        export_bundle(older, older.with_name("bundle"), ExportOptions(films=path))
    assert not older.with_name("bundle").exists()


def test_a_finished_bundle_is_fitted_anew(
    fp32_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Bundle.load(fp32_bundle).manifest
    bundle, sets = tmp_path / "bundle", {"train/third": 30, "val/third": 6}
    path = write_films(tmp_path / "films", before.preprocess, sets)
    assert main(["--fit-gate", str(fp32_bundle), "--films", str(path)]) == 2
    assert "has a bill of materials" in capsys.readouterr().err
    shutil.copytree(fp32_bundle, bundle, ignore=shutil.ignore_patterns("sbom.cdx.json"))
    write_manifest(bundle, parse_manifest((bundle / "manifest.json").read_text()))
    (bundle / "signature.ed25519").write_bytes(bytes(64))
    assert main(["--fit-gate", str(bundle), "--films", str(path)]) == 0
    after = Bundle.load(bundle).manifest
    assert after.distance is not None and after.distance.films == sets
    assert after.graphs == before.graphs and not (bundle / "signature.ed25519").exists()
    assert "the signature is gone" in caplog.text
    card = (bundle / "model_card.md").read_text()
    assert card.count("## Gate") == 1 and "30 of third" in card and "of drawn" not in card
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["bundle", "films"]


@pytest.mark.parametrize("words", [["--fit-gate", "b"], ["--fit-gate", "b", "--films", "f", "--int8"]])
def test_fitting_anew_takes_films_and_nothing_else(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert "--fit-gate BUNDLE takes --films FILE and nothing else" in capsys.readouterr().err


def test_films_of_one_split_are_not_enough(fp32_bundle: Path, films: dict[str, np.ndarray]) -> None:
    with pytest.raises(UsageError, match="splits train and val"):
        add_distance(Bundle.load(fp32_bundle), {"train/drawn": films["train/drawn"]})


def test_each_training_set_counts_the_same() -> None:
    rng = np.random.default_rng(0)
    sets = [
        Seen((rng.normal(size=(count, 6)) * spread + place).astype(np.float32), np.ones((8, THUMB**2), np.float32))
        for count, spread, place in ((40000, 1.0, 0.0), (10000, 3.0, 50.0))
    ]
    distance = fit(sets)
    np.testing.assert_allclose(distance.means.mean(axis=1), [0, 50], atol=0.1)
    left = distance.whiten @ (np.sqrt(5.0) * np.eye(6))  # variances 1 and 9: 5 on average
    np.testing.assert_allclose(left @ left.T, np.eye(6), atol=0.15)


def test_the_threads_do_not_change_a_bit() -> None:
    rng = np.random.default_rng(0)
    seen = [
        Seen(rng.normal(size=(rows, 384)).astype(np.float32), rng.normal(size=(rows, THUMB**2)).astype(np.float32))
        for rows in (700, 500)
    ]
    found = []
    for threads in (1, 2, 3, 4):
        with threadpool_limits(threads):
            found.append(tuple(values.tobytes() for values in dataclasses.astuple(fit(seen))))
    assert len(set(found)) == 1


def test_centres_are_means_of_at_least_a_few_films() -> None:
    rng = np.random.default_rng(0)
    places = rng.normal(size=(4, 8)).astype(np.float32) * 20
    rows = (places[np.arange(40) % 4] + rng.normal(size=(40, 8))).astype(np.float32)
    found = centres(rows)
    assert found.shape == (10, 8)
    nearest = np.linalg.norm(rows[:, None] - found, axis=2).min(axis=1)
    assert nearest.max() < 6
    assert centres(rows[:3]).shape == (1, 8)
    np.testing.assert_allclose(centres(rows[:3])[0], rows[:3].mean(axis=0), rtol=1e-5)


def test_changed_films_stay_films() -> None:
    film = np.full((2, SIZE, SIZE), 200, np.uint8)
    shown = varied_too(film, copies=1, seed=1)
    assert shown.shape == (4, SIZE, SIZE) and (shown[:2] == film).all()
    assert (varied_too(film, copies=1, seed=1) == shown).all() and not (
        varied_too(film, copies=1, seed=2) == shown
    ).all()
    bars = [(changed == 0).all(axis=0).any() or (changed == 0).all(axis=1).any() for changed in shown[2:]]
    assert any(bars), "what was cut is fitted into the square again"
    assert (np.median(shown[2:], axis=(1, 2)) > 150).all()
