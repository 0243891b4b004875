"""csv and ReXrank files of predictions."""

from __future__ import annotations

import json
import math

import pytest

pytest.importorskip("pycocoevalcap")

from trrg_sdk.errors import UsageError
from trrg_train.evaluation.pairs import read_predictions, read_train_reports
from trrg_train.evaluation.rexrank import read_pairs


@pytest.fixture
def csv_files(tmp_path):
    def write(predictions, references):
        paths = tmp_path / "p.csv", tmp_path / "r.csv"
        for path, text in zip(paths, (predictions, references), strict=True):
            path.write_text(text, encoding="utf-8")
        return paths

    return write


def test_joined_in_the_order_of_the_references(csv_files):
    paths = csv_files(
        'study_id,report\nb,"Two, quoted\nlines."\na,\n',
        "study_id,report,patient,split\na,Lungs clear.,p1,test\nb,Edema.,p1,test\nc,Not taken.,p2,val\n",
    )
    pairs = read_predictions(*paths, split="test")
    assert pairs.study_ids == ("a", "b")
    assert pairs.predictions == ("", "Two, quoted\nlines.")
    assert pairs.references == ("Lungs clear.", "Edema.")
    assert pairs.patients == ("p1", "p1")
    assert "Edema" not in repr(pairs) and "p1" not in repr(pairs)


def test_predictions_of_another_split_are_left_out(csv_files):
    paths = csv_files("study_id,report\na,x\nb,y\n", "study_id,report,split\na,A.,val\nb,B.,test\n")
    assert read_predictions(*paths, split="val").predictions == ("x",)
    assert read_predictions(*paths).predictions == ("x", "y")
    assert read_predictions(*paths).patients is None


ONE = "study_id,report\na,x\n"
GOOD = "study_id,report\na,x\nb,y\n"


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ("study_id,text\na,x\n", GOOD, r"p\.csv, line 1: the column report is missing; found study_id, text"),
        ("", GOOD, r"p\.csv, line 1: the column study_id is missing"),
        ("study_id,report\na,x\na,y\n", GOOD, r"p\.csv, line 3: study_id 'a' occurs twice"),
        (GOOD, "study_id,report\na,x\nb,y\nb,z\n", r"r\.csv, line 4: study_id 'b' occurs twice"),
        (GOOD, "study_id,report\na,x\nb, . \n", r"r\.csv, line 3: a reference without a word"),
        ("study_id,report\na,x, y\nb,z\n", GOOD, r"p\.csv, line 2: 2 fields are expected"),
        ("study_id,report\na\nb,z\n", GOOD, r"p\.csv, line 2: 2 fields are expected"),
        ("study_id,report\n,x\nb,z\n", GOOD, r"p\.csv, line 2: study_id is empty"),
        (
            "study_id,report\na,x\n",
            "study_id,report\na,A\nc,C\nd,D\n",
            r"2 studies of .*r\.csv have no row .*first c, d",
        ),
        ("study_id,report\na,x\nb,y\nz,z\n", GOOD, r"1 studies of .*p\.csv have no row in .*r\.csv, first z"),
        (GOOD, "study_id,report,patient\na,x,p\nb,y,\n", r"r\.csv: 1 of 2 rows name a patient"),
        (GOOD, "study_id,report\n", r"r\.csv has no reference"),
    ],
)
def test_errors_name_file_and_row(csv_files, predictions, references, message):
    with pytest.raises(UsageError, match=message):
        read_predictions(*csv_files(predictions, references))


def test_a_missing_file_and_another_encoding_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"no none\.csv in"):
        read_train_reports(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("report\nétat\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.csv is damaged or no csv in UTF-8"):
        read_train_reports(tmp_path / "latin.csv")


def test_only_train_rows_make_the_floor(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("study_id,report,split\na,A,train\nb,B,test\n", encoding="utf-8")
    assert read_train_reports(path) == ["A"]
    path.write_text("report\nA\nB\n", encoding="utf-8")
    assert read_train_reports(path) == ["A", "B"]
    path.write_text("report,split\nB,test\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no train report"):
        read_train_reports(path)


RECORDS = {
    "s1": {
        "image_path": ["/p/1.jpg"],
        "section_findings": "Lungs clear. ",
        "section_impression": math.nan,
        "context": "Age:50-60.Gender:M.Indication: Cough.",
        "subject_id": 7,
    },
    "s2": {"image_path": ["2.jpg", "3.jpg"], "section_findings": "Edema.", "section_impression": "Edema."},
}


def test_pairs_of_an_output_file(tmp_path):
    out = tmp_path / "out.json"
    written = {"s1": "One.", "s2": "Two."}
    out.write_text(json.dumps({s: {**r, "model_prediction": written[s]} for s, r in RECORDS.items()}), encoding="utf-8")
    pairs = read_pairs(out)
    assert pairs.references == ("Findings: Lungs clear.", "Findings: Edema. Impression: Edema.")
    assert pairs.predictions == ("One.", "Two.")
    assert pairs.patients is None  # only one of both names its subject


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1]", "an object"), ("{", "no valid JSON"), ('{"s": 3}', "an object"), ('{"s": {}}', "s has no model_pred")],
)
def test_another_file_is_refused(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        read_pairs(path)


def test_a_record_without_a_reference_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"s": {"model_prediction": "a", "section_findings": NaN}}', encoding="utf-8")
    with pytest.raises(UsageError, match="s has neither section_findings"):
        read_pairs(path)
