"""A sample of the films goes with the checkpoint: evenly over the studies of each source, as the model sees them."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from PIL import Image

from trrg_sdk.errors import UsageError
from trrg_sdk.preprocess import Preprocess
from trrg_train import films
from trrg_train.cli import main
from trrg_train.data.pixels import read_pixels
from trrg_train.data.study import Study
from trrg_train.models.stored import read_films

PREPROCESS = Preprocess(size=32, channels=1)


def make_studies(folder):
    found = []
    for number, split in enumerate(["train"] * 7 + ["val"] * 3 + ["test"]):
        path = folder / f"{number}.png"
        values = np.random.default_rng(number).integers(0, 256, (40, 50), dtype=np.uint8)
        Image.fromarray(values).save(path)
        source = "b" if number in (2, 8) else "a"
        found.append(Study(str(number), str(number), source, split, path, "", {}))
    return found


def test_the_films_are_those_of_the_splits_as_the_model_sees_them(tmp_path, monkeypatch):
    monkeypatch.setattr(films, "MOST", {"train": 3, "val": 400})
    studies = make_studies(tmp_path)
    path = tmp_path / "films.safetensors"
    films.save_films(studies, PREPROCESS, tmp_path / "cache", path)
    kept = read_films(path, PREPROCESS)
    assert {name: values.shape for name, values in kept.items()} == {
        "train/a": (3, 32, 32),
        "train/b": (1, 32, 32),
        "val/a": (2, 32, 32),
        "val/b": (1, 32, 32),
    }
    for row, number in enumerate((0, 3, 5)):  # of 0, 1, 3, 4, 5, 6: evenly
        shown = read_pixels(studies[number].image, PREPROCESS)[0] * PREPROCESS.std + PREPROCESS.mean
        np.testing.assert_allclose(kept["train/a"][row] / 255, shown, atol=0.003)
    assert not path.with_name("films.safetensors.writing").exists()


def test_films_of_another_preprocessing_are_refused(tmp_path):
    path = tmp_path / "films.safetensors"
    films.save_films(make_studies(tmp_path), PREPROCESS, tmp_path / "cache", path)
    with pytest.raises(UsageError, match="preprocessed otherwise"):
        read_films(path, replace(PREPROCESS, std=0.5))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UsageError, match="cut off or damaged"):
        read_films(path, PREPROCESS)
    with pytest.raises(UsageError, match="trrg-train films CONFIG"):
        read_films(tmp_path / "none", PREPROCESS)


def test_the_command_writes_the_films_of_a_configuration(tmp_path, toy_run, monkeypatch, capsys):
    config = toy_run(tmp_path, epochs=1)
    monkeypatch.setattr(films, "read_sources", lambda sources: make_studies(tmp_path))
    path = tmp_path / "films.safetensors"
    assert main(["films", str(config), "--out", str(tmp_path / "no" / "folder")]) == 2
    assert main(["films", str(config), "--out", str(path)]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    kept = read_films(path, Preprocess(size=64, channels=1))
    assert set(kept) == {"train/a", "train/b", "val/a", "val/b"}
