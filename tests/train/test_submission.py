"""Reports in ReXrank's form: its input file in, its output file out, or nothing at all."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("pycocoevalcap")
pytestmark = pytest.mark.torch

from trrg_sdk.errors import UsageError
from trrg_train import submission
from trrg_train.cli import main
from trrg_train.evaluation.rexrank import read_pairs
from trrg_train.submission import write_submission
from trrg_train.writers import Written

REPOSITORY = Path(__file__).parents[2]
RECORDS = {
    "s1": {"image_path": ["/p/lateral.png", "/p/frontal.png"], "frontal_lateral": ["Lateral", "Frontal"]},
    "s2": {"image_path": ["two.png"], "section_impression": math.nan, "section_findings": "Edema.", "other": [1]},
}


class FakeWriter:
    """Writes the name of the image that it was given; refuses ``two.png`` when told to."""

    def __init__(self, *, refuses):
        self.refuses = refuses

    def write(self, studies, *, clue_scores=None):
        names = [study.image.name for study in studies]
        return [None if self.refuses and name == "two.png" else Written(name, np.zeros(14)) for name in names]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "images" / "p").mkdir(parents=True)
    for name in ("p/lateral.png", "p/frontal.png", "two.png"):
        Image.new("L", (8, 8)).save(tmp_path / "images" / name)
    (tmp_path / "in.json").write_text(json.dumps(RECORDS), encoding="utf-8")
    return {
        "input_json": tmp_path / "in.json",
        "output_json": tmp_path / "out.json",
        "images": tmp_path / "images",
    }


@pytest.fixture
def fake(monkeypatch):
    def use(*, refuses=False):
        monkeypatch.setattr(submission, "open_writer", lambda model, cache: FakeWriter(refuses=refuses))

    return use


def test_records_stay_as_they_are_and_the_frontal_image_is_reported(files, fake):
    fake()
    write_submission(Path("model"), **files)
    text = files["output_json"].read_text(encoding="utf-8")
    written = json.loads(text)
    assert [record.pop("model_prediction") for record in written.values()] == ["frontal.png", "two.png"]
    assert json.dumps(written) == json.dumps(RECORDS)
    assert not list(files["output_json"].parent.glob("*.writing"))


def test_a_refused_study_gets_an_empty_report_and_a_line_in_the_log(files, fake, caplog):
    fake(refuses=True)
    write_submission(Path("model"), **files)
    assert json.loads(files["output_json"].read_text())["s2"]["model_prediction"] == ""
    assert "1 of 2 studies are refused by the gate and get an empty report, first study 1" in caplog.text


def broken_image(files):
    (files["images"] / "two.png").write_bytes(b"\x89PNG nothing more")


def no_image(files):
    (files["images"] / "two.png").unlink()


def no_dicom(files):
    records = RECORDS | {"s2": {"image_path": ["two.dcm"]}}
    files["input_json"].write_text(json.dumps(records), encoding="utf-8")


def a_list(files):
    records = [{"id": name, **record} for name, record in RECORDS.items()]
    files["input_json"].write_text(json.dumps(records), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken_image, r"in\.json: study 1: cannot read the image two\.png"),
        (no_image, r"in\.json: study 1: cannot read the image two\.png"),
        (no_dicom, r"in\.json: study 1: "),
        (a_list, r"in\.json: an object with a record a study id"),
        (lambda files: shutil.rmtree(files["images"]), "images is no folder"),
        (lambda files: files["input_json"].unlink(), r"in\.json is no file"),
        (lambda files: files.update(output_json=files["images"] / "no" / "out.json"), "make its folder first"),
        (lambda files: files["output_json"].mkdir(), r"cannot write .*out\.json"),
    ],
)
def test_nothing_is_written_when_something_is_wrong(files, fake, change, message):
    fake()
    change(files)
    with pytest.raises(UsageError, match=message):
        write_submission(Path("model"), **files)
    assert not files["output_json"].is_file()
    assert not list(files["output_json"].parent.glob("*.writing"))


def test_the_command_runs_the_embedded_bundle(tmp_path, capsys):
    records = {"a": {"image_path": ["phantom_pa.dcm"], "section_findings": "A film.", "subject_id": 7}}
    (tmp_path / "in.json").write_text(json.dumps(records), encoding="utf-8")
    folders = ["--img_root_dir", str(REPOSITORY / "examples" / "data")]
    files = ["--input_json_file", str(tmp_path / "in.json"), "--save_json_file", str(tmp_path / "out.json")]
    assert main(["rexrank", str(REPOSITORY / "trrg_sdk" / "bundles" / "mini"), *files, *folders]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out.json")
    pairs = read_pairs(tmp_path / "out.json")
    assert pairs.patients == ("7",) and pairs.references == ("Findings: A film.",)
    assert "effusion" in pairs.predictions[0]
