"""The check of a data set: every figure on a small made-up one, and the real IU reports."""

import gzip
import json
from dataclasses import replace

import pytest

from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.config import SourceConfig
from trrg_train.data.check import POLARITIES, Balance, check_dataset, polarity_of
from trrg_train.data.sources import read_source
from trrg_train.data.study import Study


@pytest.fixture
def studies(tmp_path):
    def study(name, split, report, labels, *, patient=None):
        path = tmp_path / f"{name}.png"
        path.touch()
        return Study(name, patient or f"ZEBRA{name}", "s", split, path, report, labels)

    return [
        study("a", "train", "No edema. Possible pneumonia.", {"Edema": False}),
        study("b", "train", "Edema. Two views of the chest.", {"Edema": True}),
        study("c", "val", "no  EDEMA. Possible\npneumonia.", {"Edema": False}),
        study("d", "test", "Small effusion.", {"Pleural Effusion": True}),
        study("e", "test", "Normal chest.", {"No Finding": True}),
    ]


def test_the_counts_of_a_sound_data_set(studies):
    check = check_dataset(studies)
    assert check.studies == check.patients == {"train": 2, "val": 1, "test": 2}
    assert (check.images, check.missing_images, check.missing_in) == (5, 0, ())
    assert (check.repeated_ids, check.shared_patients, check.empty_reports) == (0, 0, 0)
    assert check.repeated_in_train == {"val": 1, "test": 0}
    assert check.balance["train"]["Edema"] == Balance(present=1, absent=1, unknown=0)
    assert check.balance["test"]["Edema"] == Balance(present=0, absent=0, unknown=2)
    assert check.polarity["train"] == {"asserts": 1, "is uncertain": 1, "denies": 1, "says nothing": 1}
    assert check.polarity["test"] == {"asserts": 1, "is uncertain": 0, "denies": 1, "says nothing": 0}


def test_what_is_wrong_is_reported_not_refused(studies, tmp_path):
    first, *others = studies
    wrong = [replace(s, study_id=f"m{i}", image=tmp_path / "gone", images=()) for i, s in enumerate([first] * 7)]
    spread = replace(others[-1], study_id="a", patient=first.patient, report=" ")
    check = check_dataset([*studies, *wrong, spread])
    assert (check.images, check.missing_images) == (13, 7)
    assert check.missing_in == ("m0", "m1", "m2", "m3", "m4")
    assert (check.repeated_ids, check.shared_patients, check.empty_reports) == (1, 1, 1)


def test_every_view_of_a_study_is_looked_for(studies, tmp_path):
    study = replace(studies[0], images=(studies[0].image, tmp_path / "lateral.png"), views=("PA", "LATERAL"))
    check = check_dataset([study])
    assert (check.images, check.missing_images, check.missing_in) == (2, 1, ("a",))


@pytest.mark.parametrize(
    ("sentence", "polarity"),
    [
        ("Small left pleural effusion.", "asserts"),
        ("There is edema without pneumothorax.", "asserts"),
        ("No edema or effusion.", "denies"),
        ("Normal chest.", "denies"),
        ("Possible pneumonia, no pneumothorax.", "is uncertain"),
        ("Comparison is made with the last film.", "says nothing"),
    ],
)
def test_the_polarity_of_a_sentence(sentence, polarity):
    assert polarity_of(sentence) == polarity


def test_the_markdown_holds_the_figures_and_no_patient(studies, tmp_path):
    text = check_dataset(
        [*studies, replace(studies[0], study_id="gone", image=tmp_path / "x", images=())]
    ).to_markdown()
    assert "| val | 1 | 1 | 1 (100.0%) |" in text
    assert "| Edema | 1 / 2 / 0 | 0 / 1 / 0 | 0 / 0 / 2 |" in text
    assert "| test | 1 (50.0%) | 0 (0.0%) | 1 (50.0%) | 0 (0.0%) |" in text
    assert "missing images: 1 of 6 (studies gone)" in text
    assert all(name in text for name in (*OBSERVATIONS, *POLARITIES))
    assert "ZEBRA" not in text
    assert "effusion" not in text


def test_an_empty_data_set_has_a_report_too(tmp_path):
    check = check_dataset([])
    assert check.studies == {}
    assert "missing images: 0 of 0" in check.to_markdown()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_a_picture(studies, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot.{suffix}"
    check_dataset(studies).write_plot(path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    if suffix == "svg":
        assert b"Pleural Effusion" in content
        assert b"ZEBRA" not in content


def test_the_iu_reports_repeat_themselves(shared_data, tmp_path):
    """Of the R2Gen split's 296 val findings 66 stand word for word in train, the images lie elsewhere."""
    splits = {"train": [], "val": []}
    with gzip.open(shared_data / "reports" / "iu_reports.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["r2gen_split"] in splits:
                name = row["r2gen_id"]
                record = {"id": name, "report": row["findings"], "image_path": [f"{name}/0.png", f"{name}/1.png"]}
                splits[row["r2gen_split"]].append(record)
    (tmp_path / "annotation.json").write_text(json.dumps(splits))
    (tmp_path / "images").mkdir()
    check = check_dataset(read_source(SourceConfig(name="iu", kind="annotation", path=tmp_path)))
    assert check.studies == {"train": 2069, "val": 296}
    assert check.repeated_in_train == {"val": 66}
    assert check.shared_patients == 0
    assert check.missing_images == check.images == 2 * 2365
    polarity = check.polarity["train"]
    assert polarity["denies"] > polarity["asserts"] > polarity["is uncertain"] > 0
