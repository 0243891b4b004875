"""The reader of a folder of DICOM files with a csv of reports: what it reads, refuses and never shows."""

import csv

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset

from trrg_sdk.errors import UsageError
from trrg_train.data.dicom_folder import read_dicom_folder

REPORT = "INDICATION: Cough.\n\n FINDINGS:\n Small left\n effusion.\n\n IMPRESSION:\n 1. Effusion.\n"
SECRET, UID = "ZEBRA-4711", "1.2.826.0.1.3680043.8.498.4711"


def write_csv(path, columns, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def write_dicom(path, **elements):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPInstanceUID = "1.2.3"
    for keyword, value in ({"StudyInstanceUID": UID, "PatientID": SECRET} | elements).items():
        setattr(dataset, keyword, value)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def test_a_dicom_folder_groups_by_the_header_and_hides_it(tmp_path):
    write_dicom(tmp_path / "lat.dcm", ViewPosition="LL", PatientAge="063Y", PatientSex="F")
    write_dicom(tmp_path / "pa.dcm", ViewPosition="PA", PatientAge="063Y", PatientSex="F")
    write_dicom(tmp_path / "other.dcm", PatientID="OTHER", StudyInstanceUID="1.2.9")
    rows = [("lat.dcm", ""), ("pa.dcm", REPORT), ("other.dcm", "No edema")]
    write_csv(tmp_path / "reports.csv", ["path", "report"], rows)
    study, other = read_dicom_folder(tmp_path, source="clinic")
    assert (study.image, study.view, study.views) == (tmp_path / "pa.dcm", "PA", ("LATERAL", "PA"))
    assert study.report == "FINDINGS: Small left effusion. IMPRESSION: Effusion."
    assert (study.age, study.sex, study.indication) == ("63", "F", "Cough.")
    assert (other.report, other.view) == ("No edema.", "")
    assert study.patient != other.patient
    shown = "".join(map(repr, (study, other))) + study.study_id + study.patient
    assert SECRET not in shown
    assert UID not in shown
    assert (study, other) == tuple(read_dicom_folder(tmp_path, source="clinic"))


def test_the_columns_of_a_dicom_folder_win_over_the_header(tmp_path):
    for name in ("a", "b"):
        write_dicom(tmp_path / f"{name}.dcm")
    columns = ["path", "report", "study", "patient", "split"]
    rows = [("a.dcm", "No edema.", "s1", "p1", "validation"), ("b.dcm", "Edema.", "s2", "p1", "val")]
    write_csv(tmp_path / "reports.csv", columns, rows)
    first, second = read_dicom_folder(tmp_path, source="clinic")
    assert [(s.study_id, s.patient, s.split) for s in (first, second)] == [("s1", "p1", "val"), ("s2", "p1", "val")]


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (["path"], [], r"line 1: the column report"),
        (["path", "report"], [("gone.dcm", "x")], r"line 2: cannot read the file \(FileNotFoundError\)"),
        (["path", "report"], [("a.dcm", "x"), ("a.dcm", "y")], r"line 3: this study has two reports"),
        (["path", "report"], [("a.dcm", "")], r"line 2: this study has no report"),
        (["path", "report"], [("", "x")], r"line 2: path is empty"),
        (["path", "report", "patient"], [("a.dcm", "x", "1"), ("b.dcm", "x", "")], r"line 3: patient is empty"),
        (["path", "report", "study", "split"], [("a.dcm", "x", "1", "dev")], r"line 2: split must be one of"),
        (["path", "report", "patient"], [("a.dcm", "x", "1"), ("a.dcm", "x", "2")], r"line 3: .*another patient"),
        (["path", "report"], [("b.dcm", "x")], r"line 2: .*Patient ID \(0010,0020, PatientID\); add a column patient"),
    ],
)
def test_a_broken_dicom_folder_says_where_and_nothing_of_the_patient(tmp_path, columns, rows, message):
    write_dicom(tmp_path / "a.dcm")
    write_dicom(tmp_path / "b.dcm", PatientID="")
    write_csv(tmp_path / "reports.csv", columns, rows)
    with pytest.raises(UsageError, match=message) as refused:
        read_dicom_folder(tmp_path, source="clinic")
    assert "reports.csv" in str(refused.value)
    assert not [word for word in (SECRET, UID) if word in str(refused.value)]


def test_a_file_that_is_no_dicom_is_refused(tmp_path):
    (tmp_path / "a.dcm").write_text("no DICOM at all, though it is long enough to be looked at twice " * 9)
    write_csv(tmp_path / "reports.csv", ["path", "report"], [("a.dcm", "x")])
    with pytest.raises(UsageError, match="line 2"):
        read_dicom_folder(tmp_path, source="clinic")
    with pytest.raises(UsageError, match="columns path, report"):
        read_dicom_folder(tmp_path / "none", source="clinic")


def test_the_headers_of_real_files_are_read_without_a_word_of_them(tmp_path, shared_data):
    files = sorted(path for path in (shared_data / "dicom").iterdir() if path.suffix != ".csv")
    read = 0
    for path in files:
        write_csv(tmp_path / "reports.csv", ["path", "report"], [(path, "No edema.")])
        try:
            read += len(read_dicom_folder(tmp_path, source="real"))
        except UsageError as refused:
            assert "line 2" in str(refused)
    assert read > len(files) / 2
