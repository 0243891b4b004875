import json

import numpy as np
import pytest
from PIL import Image

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS, label_report
from trrg_sdk.preprocess import Preprocess
from trrg_train.data.annotation_json import read_annotation_json
from trrg_train.data.labelled_images import read_labelled_images
from trrg_train.data.study import Study, label_matrix, split_of


def write_rows(folder, *rows):
    lines = ["file,patient,labels,view,sex,age,source", *(",".join(row) + ",,," for row in rows)]
    (folder / "labels.csv").write_text("\n".join(lines))


def test_labels_become_findings_and_what_is_not_labelled_stays_open(tmp_path):
    write_rows(tmp_path, ("nih/a.jpg", "1", "Effusion|Infiltration", "AP"), ("nih/b.jpg", "2", "No Finding", "PA"))
    sick, well = read_labelled_images(tmp_path, source="nih", prefix="nih/")
    assert sick.labels["Pleural Effusion"] and sick.labels["Lung Opacity"]
    assert sick.labels["Pneumothorax"] is False
    assert "Support Devices" not in sick.labels
    assert well.labels["No Finding"] is True
    said = label_report(sick.report)
    assert said["Pleural Effusion"] == said["Lung Opacity"] == "present"
    assert "Support Devices" not in said


def test_rows_of_another_folder_and_rows_that_say_nothing_of_ours_are_left_out(tmp_path):
    write_rows(tmp_path, ("other/a.jpg", "1", "Effusion", "AP"), ("nih/b.jpg", "2", "Hernia", "PA"))
    assert read_labelled_images(tmp_path, source="nih", prefix="nih/") == []


def test_an_unknown_label_is_refused_with_its_line(tmp_path):
    write_rows(tmp_path, ("nih/a.jpg", "1", "Effusion", "AP"), ("nih/b.jpg", "2", "Gout", "PA"))
    with pytest.raises(UsageError, match=r"line 3.*Gout"):
        read_labelled_images(tmp_path, source="nih", prefix="nih/")


def test_the_real_labels_read_and_no_patient_is_in_two_splits(shared_data):
    for prefix in ("nih512/", "hannover512/"):
        studies = read_labelled_images(shared_data / "images", source="x", prefix=prefix)
        assert len(studies) > 200
        splits = {}
        for study in studies:
            assert splits.setdefault(study.patient, study.split) == study.split
            said = label_report(study.report)
            stated = {o: said[o] == "present" for o in said if o in study.labels}
            assert all(study.labels[o] == value for o, value in stated.items() if o != "No Finding")
        assert set(splits.values()) == {"train", "val", "test"}


def test_an_annotation_without_labels_is_labelled_by_its_text(tmp_path):
    record = {"id": "a", "image_path": ["a.png"], "report": "Small left effusion. Possible pneumonia. No edema."}
    (tmp_path / "annotation.json").write_text(json.dumps({"train": [record], "val": [], "test": []}))
    (study,) = read_annotation_json(tmp_path, source="s")
    assert study.labels["Pleural Effusion"] is True
    assert study.labels["Edema"] is False
    assert "Pneumonia" not in study.labels


def test_a_broken_annotation_names_the_record(tmp_path):
    with pytest.raises(UsageError, match=r"annotation\.json"):
        read_annotation_json(tmp_path, source="s")
    (tmp_path / "annotation.json").write_text(json.dumps({"val": [{"id": "a", "report": "x"}]}))
    with pytest.raises(UsageError, match=r"val\[0\].*image_path"):
        read_annotation_json(tmp_path, source="s")


def test_splits_follow_the_patient_and_their_shares():
    splits = [split_of(str(i), val=0.1, test=0.2) for i in range(5000)]
    assert splits.count("test") / 5000 == pytest.approx(0.2, abs=0.02)
    assert splits.count("val") / 5000 == pytest.approx(0.1, abs=0.02)


def study(folder, name):
    return Study(name, name, "s", "train", folder / name, "", {"Edema": True, "Fracture": False})


def test_unknown_labels_are_nan(tmp_path):
    row = label_matrix([study(tmp_path, "a")])[0]
    assert row[OBSERVATIONS.index("Edema")] == 1.0
    assert row[OBSERVATIONS.index("Fracture")] == 0.0
    assert np.isnan(row[OBSERVATIONS.index("Pneumonia")])


def test_pixels_are_built_once_and_keyed_by_preprocessing(tmp_path):
    pytest.importorskip("tqdm")
    from trrg_train.data.pixels import cached_pixels

    picture = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    studies, cache = [study(tmp_path, "a.png")], tmp_path / "cache"
    first = cached_pixels(studies, Preprocess(size=32), cache)
    assert first.shape == (1, 1, 32, 32)
    expected = Preprocess(size=32).apply(picture.astype(np.float32))
    assert np.abs(first[0].astype(np.float32) - expected).max() < 2e-3
    (tmp_path / "a.png").unlink()
    assert np.array_equal(cached_pixels(studies, Preprocess(size=32), cache), first)
    with pytest.raises(UsageError, match=r"a\.png"):
        cached_pixels(studies, Preprocess(size=16), cache)
    assert not [p for p in cache.iterdir() if p.name.endswith("16.npy")]
