"""``--accept CODE``: one code of the gate is overridden, everywhere, and whatever comes out says so."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from tokenizers import Tokenizer

from tests.sdk.chest_dicom import chest_bytes, chest_pixels
from tests.sdk.handmade_reports import full_reading
from tests.sdk.site_folder import TEXT, TINY, audited, put
from trrg_sdk import InputError, RefusedError, Report, Reporter, UsageError
from trrg_sdk.backends import fake
from trrg_sdk.cli import main
from trrg_sdk.gate_codes import ACCEPTABLE, REFUSALS, reason
from trrg_sdk.outputs import open_output
from trrg_sdk.outputs.identity import result_uid
from trrg_sdk.report import GateResult
from trrg_sdk.site.job import Job, open_outputs

Trrg = Callable[..., int]
OVERRIDDEN = GateResult("overridden", (), (reason("wrong_body_part", part="HAND"),))
FORMATS = ("text", "html", "json", "sr", "sr-basic", "sr-3d", "heat", "fhir", "fhir-r5", "hl7")


@pytest.fixture
def trrg(monkeypatch: pytest.MonkeyPatch) -> Trrg:
    """``trrg`` with the tiny bundle and the fake backend."""
    script = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    opened = fake.open_backend(script=script)
    monkeypatch.setattr("trrg_sdk.reporter.open_backend", lambda **_: opened)
    return lambda *words: main([*map(str, words), "--bundle", str(TINY)])


@pytest.fixture
def hand(tmp_path: Path) -> Path:
    return put(tmp_path / "in" / "hand.dcm", chest_bytes(BodyPartExamined="HAND"))


def only_report(out: Path) -> Report:
    (path,) = out.rglob("*.json")
    return Report.from_json(path.read_bytes())


def test_report_refuses_unless_the_code_is_accepted(
    trrg: Trrg, hand: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert trrg("report", hand) == 3
    assert "The body part is HAND" in capfd.readouterr().err
    assert trrg("report", hand, "--accept", "inverted") == 3
    assert trrg("report", hand, "--accept", "inverted", "--accept", "wrong_body_part", "--out", tmp_path / "out") == 0
    assert trrg("report", hand, "--accept", "wrong_body_part", "--format", "json", "--out", tmp_path / "out") == 0
    gate = only_report(tmp_path / "out").gate
    assert gate == OVERRIDDEN
    (text,) = (tmp_path / "out").glob("*.txt")
    assert "overrode it (wrong_body_part): The body part is HAND" in " ".join(text.read_text().split())


@pytest.mark.parametrize("command", ["report", "batch", "watch"])
@pytest.mark.parametrize(("code", "said"), [("upside_down", "no code 'upside_down'"), ("undecodable", "can never be")])
def test_a_code_that_cannot_be_accepted_is_a_usage_error(
    trrg: Trrg, hand: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str, code: str, said: str
) -> None:
    words = [hand] if command == "report" else [hand.parent, "--out", tmp_path / "out"]
    assert trrg(command, *words, "--accept", code) == 2
    error = capfd.readouterr().err
    assert said in error and ", ".join(ACCEPTABLE) in error
    assert not (tmp_path / "out").exists()


def test_a_batch_reports_again_when_the_accepted_codes_change(trrg: Trrg, hand: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    put(hand.with_name("good.dcm"), chest_bytes(uid="2.25.7", study="2.25.7"))

    def batch(*more: str) -> int:
        return trrg("batch", hand.parent, "--out", out, "--format", "json", *more)

    assert batch() == 3 and audited(out).total() == 2
    assert batch("--accept", "wrong_body_part") == 0 and audited(out).total() == 4
    found = [Report.from_json(path.read_bytes()).gate for path in (out / "reports").iterdir()]
    assert sorted(gate.status for gate in found) == ["accepted", "overridden"] and OVERRIDDEN in found
    lines = [json.loads(line)["overridden"] for line in (out / "audit.jsonl").read_text().splitlines()]
    assert sorted(lines) == ["", "", "", "wrong_body_part"]
    assert "overrode it (wrong_body_part)" in (out / "index.html").read_text()
    assert batch("--accept", "wrong_body_part", "--accept", "wrong_body_part") == 0 and audited(out).total() == 4
    assert batch("--accept", "wrong_body_part", "--accept", "inverted") == 0 and audited(out).total() == 6
    assert batch() == 3 and audited(out).total() == 8
    assert len(list((out / "reports").iterdir())) == 1


def test_a_batch_takes_an_image_that_needs_an_override_last_and_all_its_codes(trrg: Trrg, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    put(folder / "a", chest_bytes(uid="2.25.1", BodyPartExamined="HAND"))
    put(folder / "b", chest_bytes(uid="2.25.2", ViewPosition="AP", PixelData=bytes(256 * 220 * 2 - 2) + b"\x01\x00"))
    put(folder / "c", chest_bytes(uid="2.25.3", BodyPartExamined="HAND", ViewPosition="LL"))

    def batch(*codes: str) -> int:
        more = [word for code in codes for word in ("--accept", code)]
        return trrg("batch", folder, "--out", out, "--format", "json", *more)

    assert batch("lateral_view") == 3 and not list((out / "reports").iterdir())
    assert batch("wrong_body_part", "lateral_view") == 0
    report = only_report(out / "reports")
    assert [image.sop_instance_uid for image in report.images if image.used] == ["2.25.1"]
    assert report.gate.overridden == OVERRIDDEN.overridden
    assert {found.code for found in report.gate.reasons} == {"mostly_blank", "wrong_body_part"}
    put(folder / "d", chest_bytes(uid="2.25.4", ViewPosition="AP"))
    assert batch("wrong_body_part", "lateral_view") == 0
    report = only_report(out / "reports")
    assert report.gate.status == "accepted"
    assert [image.sop_instance_uid for image in report.images if image.used] == ["2.25.4"]


def test_many_bad_images_have_their_own_code(trrg: Trrg, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in range(10):
        pixels = (4095 - chest_pixels()).tobytes()
        put(tmp_path / "in" / str(number), chest_bytes(uid=f"2.25.{number + 1}", PixelData=pixels))
    assert trrg("batch", tmp_path / "in", "--out", tmp_path / "out") == 3
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<b>inverted</b>" in page and "<b>too_many_images</b> The first 8 images cannot be reported" in page


def test_a_dry_run_and_a_reporter_of_other_codes(
    trrg: Trrg, hand: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["batch", hand.parent, "--out", tmp_path / "out", "--dry-run"]
    assert trrg(*words) == 0 and "images to try: 0 of 1, left out: wrong_body_part" in capfd.readouterr().out
    assert trrg(*words, "--accept", "wrong_body_part") == 0 and "images to try: 1 of 1\n" in capfd.readouterr().out
    options = open_outputs("text")
    job = Job(hand.parent, tmp_path / "out", options)
    with pytest.raises(UsageError, match="give both the same"), job.opened(Reporter(TINY, accept=["inverted"])):
        pass


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_names_what_was_overridden(name: str) -> None:
    plain = full_reading()
    reading = dataclasses.replace(plain, report=dataclasses.replace(plain.report, gate=OVERRIDDEN))
    output = open_output(name)
    assert b"wrong_body_part" in output.render(reading)
    assert b"overrid" not in output.render(plain).replace(b'"overridden": []', b"")
    if name.startswith("fhir"):
        entries = [entry["resource"] for entry in json.loads(output.render(reading))["entry"]]
        (conclusion,) = [item["conclusion"] for item in entries if "conclusion" in item]
        assert "overrode it (wrong_body_part): The body part is HAND" in conclusion
    if name == "sr":
        about = pydicom.dcmread(io.BytesIO(output.render(reading))).ContentSequence
        said = [item.TextValue for part in about for item in part.get("ContentSequence", ()) if "TextValue" in item]
        assert any("overrode it (wrong_body_part): The body part is HAND" in text for text in said)
    if name == "heat":
        assert "BodyPartExamined" not in pydicom.dcmread(io.BytesIO(output.render(reading)))
    assert result_uid(name, reading) != result_uid(name, plain)


def test_every_real_file_ends_in_a_report_or_a_coded_refusal(trrg: Trrg, shared_data: Path) -> None:
    """With nothing accepted test_real_files.py shows it; here everything is accepted that can be."""
    reporter = Reporter(TINY, accept=ACCEPTABLE)
    overridden = 0
    for path in sorted(set((shared_data / "dicom").iterdir()) - {shared_data / "dicom" / "index.csv"}):
        try:
            gate = reporter.report(path).gate
        except InputError as error:
            assert REFUSALS[error.code].never, f"{path.name}: {error.code} was accepted"
            assert not isinstance(error, RefusedError)
            continue
        overridden += gate.status == "overridden"
        assert (gate.status == "overridden") == bool(gate.overridden)
    assert overridden > 15
