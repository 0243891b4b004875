"""Every output of real files: the example through the whole program, and all DICOM files at hand by header."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from tokenizers import Tokenizer

from tests.sdk.chest_dicom import MARK, chest_bytes
from tests.sdk.handmade_reports import MADE_AT, full_report
from tests.sdk.peers import dciodvfy_errors, dsrdump
from trrg_sdk.backends import fake
from trrg_sdk.cli import main
from trrg_sdk.dicom import Radiograph, load
from trrg_sdk.errors import InputError, UsageError
from trrg_sdk.outputs import FORMATS, open_output
from trrg_sdk.reading import Picture, Reading
from trrg_sdk.reporter import Reporter

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "data" / "phantom_pa.dcm"
CHESTS = (
    "pydicom-data__RG1_J2KI.dcm",
    "torchxrayvision__1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm",
)
TINY = Path(__file__).parent / "tiny_bundle"
TEXT = "FINDINGS: There is a pleural effusion. No edema. IMPRESSION: Pleural effusion."


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    opened = fake.open_backend(script=script)
    monkeypatch.setattr("trrg_sdk.reporter.open_backend", lambda **_: opened)


def available() -> list[str]:
    """The formats whose packages are here; without one of the extras only the others are tested."""
    found = []
    for name in FORMATS:
        try:
            found.append(open_output(name).NAME)
        except UsageError:
            continue
    return found


@pytest.mark.usefixtures("backend")
def test_the_example_study_is_written_in_every_format(tmp_path: Path) -> None:
    reading = Reporter(TINY).read(EXAMPLE)
    source = pydicom.dcmread(EXAMPLE)
    assert reading.made_at is not None
    assert reading.made_at.tzinfo is not None
    for name in available():
        output = open_output(name)
        content = output.render(reading)
        if output.EXTENSION.endswith(".dcm"):
            written = pydicom.dcmread(io.BytesIO(content))
            assert written.StudyInstanceUID == source.StudyInstanceUID
            assert written.PatientName == source.PatientName
            assert dciodvfy_errors(content, tmp_path) == [], name
        if output.EXTENSION.startswith(".sr"):
            assert "error" not in dsrdump(content, tmp_path).lower()


@pytest.mark.usefixtures("backend")
def test_trrg_report_writes_every_format(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    names = available()
    arguments = ["report", str(EXAMPLE), "--bundle", str(TINY), "--out", str(out), "--format", ",".join(names)]
    assert main(arguments) == 0
    assert {path.name.partition(".")[2] for path in out.iterdir()} == {open_output(n).EXTENSION[1:] for n in names}
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("backend")
def test_a_dicom_file_is_not_for_the_screen(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(EXAMPLE), "--bundle", str(TINY), "--format", "text,heat"]) == 2
    assert "--out" in capfd.readouterr().err


@pytest.mark.usefixtures("backend")
def test_deidentified_outputs_hold_nothing_of_the_patient(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    study, key, out = tmp_path / "study.dcm", tmp_path / "site.key", tmp_path / "out"
    study.write_bytes(chest_bytes(uid="2.25.4242424242", study="2.25.777777777"))
    key.write_bytes(b"k" * 32)
    arguments = ["report", str(study), "--bundle", str(TINY), "--deidentify", str(key), "--out", str(out)]
    assert main([*arguments, "--format", ",".join(available())]) == 0
    files = sorted(out.iterdir())
    assert len(files) == len(available())
    for path in files:
        content = path.read_bytes()
        for value in (MARK, "2.25.4242424242", "2.25.777777777", "19010203", "19990807"):
            assert value.encode() not in content, path.suffixes
    capfd.readouterr()


@pytest.mark.usefixtures("backend")
def test_writing_logs_nothing_of_the_patient(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        reading = Reporter(TINY).read(chest_bytes(uid="2.25.4242424242", study="2.25.777777777"))
        for name in available():
            assert open_output(name).render(reading)
    for value in (MARK, "2.25.4242424242", "2.25.777777777"):
        assert value not in caplog.text


@pytest.mark.usefixtures("backend")
def test_an_array_has_text_json_and_html_only() -> None:
    reading = Reporter(TINY).read(load(EXAMPLE).pixels)
    assert reading.context is None
    for name in available():
        if name in ("text", "json", "html"):
            assert open_output(name).render(reading)
            continue
        with pytest.raises(InputError) as caught:
            open_output(name).render(reading)
        assert caught.value.code == "no_dicom_context", name


@pytest.mark.usefixtures("backend")
def test_a_report_of_the_program_follows_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs the extra dev")
    schema = json.loads((REPOSITORY / "trrg_sdk" / "outputs" / "report.schema.json").read_text(encoding="utf-8"))
    for forced in ({}, {"Edema": 0.9}):
        reading = Reporter(TINY).read(EXAMPLE, clue_scores=forced)
        jsonschema.validate(json.loads(open_output("json").render(reading)), schema)


def image_of(path: Path) -> Radiograph | None:
    """The image, where it can be read and its file has the UIDs of a study."""
    try:
        image = load(path)
    except InputError:
        return None
    context = image.context
    complete = context and all(
        (context.study_instance_uid, context.series_instance_uid, context.sop_class_uid, context.sop_instance_uid)
    )
    return image if complete else None


def test_the_header_of_every_real_file_makes_valid_objects(shared_data: Path, tmp_path: Path) -> None:
    paths = sorted(path for path in (shared_data / "dicom").iterdir() if path.suffix != ".csv")
    images = {path.name: image for path in paths if (image := image_of(path))}
    assert len(images) >= 15
    names = [name for name in available() if name not in ("text", "json", "html")]
    for name, image in images.items():
        heat = {clue: np.full((2, 2), 0.5, np.float32) for clue in full_report().clues.names}
        picture = Picture(image.pixels, heat, (0.0, 0.0, 1.0, 1.0))
        reading = Reading(full_report(), image.context, picture, MADE_AT)
        for output in names:
            content = open_output(output).render(reading)
            if output in ("sr", "sr-basic", "sr-3d", "heat"):
                assert dciodvfy_errors(content, tmp_path) == [], f"{output} of {name}"


@pytest.mark.usefixtures("backend")
def test_a_name_of_a_real_chest_radiograph_survives(shared_data: Path) -> None:
    pytest.importorskip("highdicom", reason="needs the extra sr")
    render: Callable[[Reading], bytes] = open_output("sr").render
    for name in (
        "pydicom-data__RG1_J2KI.dcm",
        "torchxrayvision__1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm",
    ):
        path = shared_data / "dicom" / name
        source = pydicom.dcmread(path)
        written = pydicom.dcmread(io.BytesIO(render(Reporter(TINY).read(path))))
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
            assert str(written.get(keyword, "")) == str(source.get(keyword, "") or "").strip(), keyword
