"""The readers of data as it lies in the field, on small made-up copies of each form."""

import csv
import gzip
import io
import json
import logging

import pytest

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.config import SourceConfig
from trrg_train.data.annotation_json import read_annotation_json
from trrg_train.data.labelled_images import read_labelled_images
from trrg_train.data.mimic_cxr import read_mimic_cxr
from trrg_train.data.rexrank import read_rexrank
from trrg_train.data.sources import READERS, read_source, read_sources
from trrg_train.data.study import Study, frontal_index, view_named

REPORT = """FINAL REPORT
 INDICATION: Cough.

 COMPARISON: None.

 FINDINGS:
 Small left
 effusion.

 IMPRESSION:
 1. Effusion.
"""


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_csv(path, columns, rows):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *rows])
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


# Study


def test_a_study_of_one_image_has_it_among_its_images(tmp_path):
    study = Study("a", "p", "s", "train", tmp_path / "a.png", "No edema.", {}, view="PA")
    assert (study.images, study.views) == ((tmp_path / "a.png",), ("PA",))


def test_a_study_refuses_an_image_that_is_none_of_its_own(tmp_path):
    with pytest.raises(ValueError, match="one of the 1 images"):
        Study("a", "p", "s", "train", tmp_path / "a.png", "", {}, images=(tmp_path / "b.png",))
    with pytest.raises(ValueError, match="one view for each of 1 images"):
        Study("a", "p", "s", "train", tmp_path / "a.png", "", {}, views=("PA", "LATERAL"))


def test_nothing_of_the_patient_is_in_the_repr(tmp_path):
    private = {"patient": "ZEBRA", "report": "QUAGGA", "indication": "OKAPI", "comparison": "GNU", "age": "97"}
    shown = repr(Study(study_id="a", source="s", split="val", image=tmp_path / "a", labels={}, sex="F", **private))
    assert not [value for value in private.values() if value in shown.replace(str(tmp_path), "")]


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("PA", "PA"),
        ("antero-posterior", "AP"),
        ("postero-anterior", "PA"),
        ("LL", "LATERAL"),
        ("left lateral", "LATERAL"),
        ("Frontal", "FRONTAL"),
        ("AP LLD", ""),
        ("LAO", ""),
        ("", ""),
    ],
)
def test_views_in_their_many_spellings(text, view):
    assert view_named(text) == view


def test_the_frontal_view_is_pa_then_ap():
    assert frontal_index(["LATERAL", "AP", "PA"]) == 2
    assert frontal_index(["", "FRONTAL", "AP"]) == 2
    assert frontal_index(["LATERAL", ""]) is None


# annotation.json


@pytest.mark.parametrize("name", ["CXR1000_IM-0003-1001", "CXR1000_1_IM-0003"])
def test_the_iu_form_has_two_views_below_images_and_its_patient_in_the_id(tmp_path, name):
    record = {
        "id": name,
        "report": "No edema.",
        "image_path": ["CXR1000_IM-0003/0.png", "CXR1000_IM-0003/1.png"],
    }
    write_json(tmp_path / "annotation.json", {"train": [], "val": [], "test": [record]})
    (tmp_path / "images").mkdir()
    (study,) = read_annotation_json(tmp_path, source="iu")
    folder = tmp_path / "images" / "CXR1000_IM-0003"
    assert study.images == (folder / "0.png", folder / "1.png")
    assert (study.image, study.patient, study.split) == (folder / "0.png", "CXR1000", "test")
    assert study.labels["Edema"] is False


def test_the_mimic_form_has_its_patient_in_subject_id(tmp_path):
    record = {
        "id": "02aa-804e",
        "study_id": 50,
        "subject_id": 10,
        "report": "No edema.",
        "image_path": ["p10/p10/s50/02aa-804e.jpg"],
    }
    write_json(tmp_path / "annotation.json", {"val": [record]})
    (study,) = read_annotation_json(tmp_path, source="mimic")
    assert (study.study_id, study.patient, study.split) == ("02aa-804e", "10", "val")
    assert study.image == tmp_path / "p10/p10/s50/02aa-804e.jpg"


def test_the_phantom_form_is_read_as_before(tmp_path):
    labels = {name: name == "Edema" for name in OBSERVATIONS}
    record = {
        "id": "a",
        "patient": "p",
        "image_path": ["images/a.dcm"],
        "view": "AP",
        "report": "Edema.",
        "labels": labels,
    }
    write_json(tmp_path / "annotation.json", {"train": [record]})
    (tmp_path / "images").mkdir()
    (study,) = read_annotation_json(tmp_path, source="phantom")
    assert study.image == tmp_path / "images" / "a.dcm"
    assert (study.patient, study.view, study.views, study.labels) == ("p", "AP", ("AP",), labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "an object with lists"),
        ({"train": {}}, "an object with lists"),
        ({"val": [1]}, r"val\[0\]: an object"),
        ({"val": [{"id": "a", "report": "x", "image_path": "a.png"}]}, r"val\[0\].*list of at least one path"),
        ({"val": [{"id": "a", "report": "x", "image_path": []}]}, r"val\[0\].*list of at least one path"),
        ({"val": [{"report": "x", "image_path": ["a.png"]}]}, r"val\[0\].*'id' is missing"),
        ({"val": [{"id": "a", "report": "x", "image_path": ["a"], "labels": {"Gout": True}}]}, r"val\[0\].*Gout"),
    ],
)
def test_a_broken_annotation_says_where(tmp_path, content, message):
    write_json(tmp_path / "annotation.json", content)
    with pytest.raises(UsageError, match=message):
        read_annotation_json(tmp_path, source="s")


# MIMIC-CXR-JPG

IMAGES = [  # dicom, patient, study, view, meaning of the view code
    ("d0", "10000032", "50414267", "LATERAL", "lateral"),
    ("d1", "10000032", "50414267", "AP", "antero-posterior"),
    ("d2", "10000032", "50414267", "PA", "postero-anterior"),
    ("d3", "11000007", "50000009", "", "antero-posterior"),
    ("d4", "11000007", "50000010", "LL", "left lateral"),
]
SPLIT_OF = {"10000032": "train", "11000007": "validate"}


def write_mimic(folder, *, images=IMAGES, splits=SPLIT_OF, labels=None, suffix=".csv"):
    stem = f"{folder}/mimic-cxr-2.0.0"
    columns = ["dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "ViewCodeSequence_CodeMeaning"]
    rows = [[dicom, patient, study, view, 3056, meaning] for dicom, patient, study, view, meaning in images]
    write_csv(type(folder)(f"{stem}-metadata{suffix}"), columns, rows)
    rows = [[dicom, study, patient, splits[patient]] for dicom, patient, study, _, _ in images]
    write_csv(type(folder)(f"{stem}-split{suffix}"), ["dicom_id", "study_id", "subject_id", "split"], rows)
    names = sorted(OBSERVATIONS)
    values = {"Pleural Effusion": "1.0", "Edema": "0.0", "Pneumonia": "-1.0"} if labels is None else labels
    rows = [["10000032", "50414267", *(values.get(name, "") for name in names)]]
    write_csv(type(folder)(f"{stem}-chexpert{suffix}"), ["subject_id", "study_id", *names], rows)
    for _, patient, study, _, _ in images:
        path = folder / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(REPORT)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_mimic_folder(tmp_path, caplog, suffix):
    write_mimic(tmp_path, suffix=suffix)
    with caplog.at_level(logging.INFO):
        first, second = read_mimic_cxr(tmp_path, source="mimic")
    folder = tmp_path / "files" / "p10" / "p10000032" / "s50414267"
    assert (first.study_id, first.patient, first.split) == ("50414267", "10000032", "train")
    assert (first.image, first.view) == (folder / "d2.jpg", "PA")
    assert first.images == (folder / "d0.jpg", folder / "d1.jpg", folder / "d2.jpg")
    assert first.views == ("LATERAL", "AP", "PA")
    assert first.report == "FINDINGS: Small left effusion. IMPRESSION: Effusion."
    assert (first.indication, first.comparison) == ("Cough.", "None.")
    assert first.labels == {"Pleural Effusion": True, "Edema": False}
    assert (second.split, second.view, second.labels) == ("val", "AP", {})
    assert "1 without a frontal image" in caplog.text
    assert "10000032" not in caplog.text


def test_a_mimic_report_that_says_nothing_of_the_image_is_left_out(tmp_path, caplog):
    write_mimic(tmp_path, images=IMAGES[3:4])
    (tmp_path / "files/p11/p11000007/s50000009.txt").write_text("FINAL REPORT\n INDICATION: Cough.\n")
    with caplog.at_level(logging.INFO):
        assert read_mimic_cxr(tmp_path, source="mimic") == []
    assert "1 without findings" in caplog.text


def test_a_mimic_folder_that_is_incomplete_says_where(tmp_path):
    with pytest.raises(UsageError, match=r"neither mimic-cxr-2\.0\.0-split\.csv nor .*\.gz is in"):
        read_mimic_cxr(tmp_path, source="mimic")
    write_mimic(tmp_path, labels={"Edema": "2"})
    with pytest.raises(UsageError, match=r"chexpert\.csv, line 2: a label must be 1, 0, -1 or blank, not '2'"):
        read_mimic_cxr(tmp_path, source="mimic")
    write_mimic(tmp_path, splits=SPLIT_OF | {"11000007": "dev"})
    with pytest.raises(UsageError, match=r"split\.csv, line 5: split must be one of .*'dev'"):
        read_mimic_cxr(tmp_path, source="mimic")
    write_mimic(tmp_path)
    (tmp_path / "files/p10/p10000032/s50414267.txt").unlink()
    with pytest.raises(UsageError, match=r"metadata\.csv, line 2: the report s50414267\.txt") as refused:
        read_mimic_cxr(tmp_path, source="mimic")
    assert "10000032" not in str(refused.value)


def test_mimic_tables_of_two_versions_are_refused(tmp_path):
    write_mimic(tmp_path)
    path = tmp_path / "mimic-cxr-2.0.0-split.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(UsageError, match=r"metadata\.csv, line 6: this image has no row in"):
        read_mimic_cxr(tmp_path, source="mimic")
    path.write_text("dicom_id,study_id\n")
    with pytest.raises(UsageError, match=r"split\.csv, line 1: the column split is missing"):
        read_mimic_cxr(tmp_path, source="mimic")


def test_a_cut_off_gzip_is_named(tmp_path):
    write_mimic(tmp_path, suffix=".csv.gz")
    path = tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(UsageError, match=r"split\.csv\.gz is damaged"):
        read_mimic_cxr(tmp_path, source="mimic")


# ReXrank

REXRANK = {
    "image_path": ["/p10/s50/a.jpg", "/p10/s50/b.jpg"],
    "key_image_path": "/p10/s50/b.jpg",
    "frontal_lateral": ["left lateral", "antero-posterior"],
    "section_findings": "Small left\neffusion.",
    "section_impression": float("nan"),
    "report": "Findings: Small left\neffusion. Impression: None.",
    "context": "Age:50-60.Gender:M.Indication: Cough, ___.Comparison: ___ film.",
    "split": "test",
    "subject_id": 10,
}


def test_a_rexrank_record(tmp_path):
    write_json(tmp_path / "ReXRank_test.json", {"50": REXRANK})
    (tmp_path / "files").mkdir()
    (study,) = read_rexrank(tmp_path, source="rexrank")
    assert study.images == (tmp_path / "files/p10/s50/a.jpg", tmp_path / "files/p10/s50/b.jpg")
    assert (study.image, study.view, study.views) == (study.images[1], "AP", ("LATERAL", "AP"))
    assert (study.study_id, study.patient, study.split) == ("50", "10", "test")
    assert study.report == "FINDINGS: Small left effusion."
    assert (study.age, study.sex, study.indication, study.comparison) == ("50-60", "M", "Cough, ___.", "___ film.")
    assert study.labels["Pleural Effusion"] is True


def test_a_rexrank_list_with_a_context_of_keys(tmp_path):
    record = {
        "study_id": "patient7_study1",
        "image_path": ["v/lat.png", "v/front.png"],
        "frontal_lateral": ["Lateral", "Frontal"],
        "ap_pa": [float("nan"), "PA"],
        "report": "Findings: None. Impression: No edema.",
        "context": {"age": 77.0, "gender": "Female", "indication": float("nan"), "comparison": "None."},
    }
    (study,) = read_rexrank(write_json(tmp_path / "a.json", [record]), source="s")
    assert (study.image, study.view, study.views) == (tmp_path / "v/front.png", "PA", ("LATERAL", "PA"))
    assert (study.patient, study.split, study.report) == ("patient7", "test", "IMPRESSION: No edema.")
    assert (study.age, study.sex, study.indication, study.comparison) == ("77", "F", "", "")


def test_rexrank_without_views_takes_the_first_image_and_the_patient_of_the_id(tmp_path):
    record = {"image_path": ["0.png", "1.png"], "report": "No edema.", "split": "valid"}
    (study,) = read_rexrank(write_json(tmp_path / "a.json", {"CXR5_IM-1": record}), source="s")
    assert (study.image, study.patient, study.split) == (tmp_path / "0.png", "CXR5", "val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text", "a list or an object of studies"),
        ([7], r"a\.json: study 0: an object"),
        ([REXRANK], r"study 0: .* needs a study_id"),
        ({"1": REXRANK, "2": REXRANK | {"image_path": "a.png"}}, r"study 1: image_path must be a list"),
        ({"1": REXRANK | {"key_image_path": "c.jpg"}}, r"study 0: key_image_path must be one of"),
        (
            {"1": REXRANK | {"section_findings": None, "report": "Findings: None. Impression: None."}},
            r"study 0: .*needed",
        ),
        ({"1": REXRANK | {"context": 3}}, r"study 0: context must be"),
        ({"1": REXRANK | {"split": "dev"}}, r"study 0: split must be one of"),
    ],
)
def test_a_broken_rexrank_file_says_where(tmp_path, content, message):
    write_json(tmp_path / "a.json", content)
    with pytest.raises(UsageError, match=message):
        read_rexrank(tmp_path, source="s")


def test_a_rexrank_folder_without_json_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no \.json file"):
        read_rexrank(tmp_path, source="s")
    with pytest.raises(UsageError, match="name ReXrank's JSON file"):
        read_rexrank(tmp_path / "a.json", source="s")


# labels.csv


def test_labels_without_a_needed_column_are_refused(tmp_path):
    write_csv(tmp_path / "labels.csv", ["file", "labels", "view"], [])
    with pytest.raises(UsageError, match=r"labels\.csv, line 1: the column patient"):
        read_labelled_images(tmp_path, source="s", prefix="")


# The table of kinds


def test_every_kind_is_read_and_an_unknown_one_is_refused_with_the_list(tmp_path):
    assert set(READERS) == {"annotation", "labelled_images", "mimic_cxr", "rexrank", "dicom_folder"}
    for kind in READERS:
        with pytest.raises(UsageError, match=r"annotation|labels|split|json|reports"):
            read_source(SourceConfig(name="s", kind=kind, path=tmp_path))
    with pytest.raises(UsageError, match=r"annotation, labelled_images, mimic_cxr, rexrank, dicom_folder, not 'xml'"):
        read_source(SourceConfig(name="s", kind="xml", path=tmp_path))


def test_a_source_may_be_read_unchecked_but_not_for_training(tmp_path):
    records = [{"id": name, "patient": "p", "image_path": [name], "report": "No edema."} for name in "ab"]
    write_json(tmp_path / "annotation.json", {"train": records[:1], "test": records[1:]})
    source = SourceConfig(name="s", kind="annotation", path=tmp_path)
    assert len(read_source(source)) == 2
    with pytest.raises(UsageError, match="two splits"):
        read_sources([source])
