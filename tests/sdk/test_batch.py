from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sdk.chest_dicom import MARK, chest_bytes
from tests.sdk.conftest import Batch
from tests.sdk.site_folder import TINY, audited, contents, put, states, studies
from trrg_sdk import DeviceError, Report, Reporter
from trrg_sdk.cli import main
from trrg_sdk.site import lock
from trrg_sdk.site.job import Job, open_outputs
from trrg_sdk.site.ledger import peek
from trrg_sdk.site.progress import Lines


def at_the_first_image(work: Callable[[], None]) -> Callable[..., Iterator[object]]:
    """A ``report_many`` that does something else as soon as there is something to report."""

    def report_many(self: Reporter, sources: Iterable[object], **_: object) -> Iterator[object]:
        for source in sources:
            work()
            yield source

    return report_many


def reports(tmp_path: Path) -> dict[str, Report]:
    return {path.stem: Report.from_json(path.read_bytes()) for path in (tmp_path / "out" / "reports").glob("*.json")}


def only_report(tmp_path: Path) -> Report:
    (report,) = reports(tmp_path).values()
    return report


def row(tmp_path: Path) -> dict[str, str]:
    (found,) = csv.DictReader(io.StringIO((tmp_path / "out" / "summary.csv").read_text()))
    return found


def used(report: Report) -> list[str]:
    return [image.sop_instance_uid for image in report.images if image.used]


def why(report: Report) -> set[str]:
    return {reason.code for reason in report.gate.reasons}


def test_every_study_gets_a_report_named_by_a_hash(batch: Batch, tmp_path: Path) -> None:
    studies(tmp_path / "in", 3)
    assert batch() == 0
    expected = {hashlib.sha256(f"2.25.8000{n}".encode()).hexdigest()[:16] for n in (1, 2, 3)}
    assert set(reports(tmp_path)) == set(audited(tmp_path / "out")) == expected
    assert states(tmp_path / "out") == {"done": 3}
    assert {path.stem for path in (tmp_path / "out" / "pictures").iterdir()} == expected
    assert only_lines(tmp_path) == 3


def only_lines(tmp_path: Path) -> int:
    return len(list(csv.DictReader(io.StringIO((tmp_path / "out" / "summary.csv").read_text()))))


def test_nothing_is_done_twice(batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = studies(tmp_path / "in", 3)
    assert batch() == 0
    before = contents(tmp_path / "out")

    def never(*_: object) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(Reporter, "report_many", at_the_first_image(never))
    monkeypatch.setattr("trrg_sdk.site.batch.outbox.write", never)
    assert batch() == 0
    os.utime(files[0])  # touched, and the same
    put(files[1].parent / "moved", files[1].read_bytes())
    files[1].unlink()
    assert batch("--settle", "0") == 0
    assert contents(tmp_path / "out") == before and audited(tmp_path / "out").total() == 3


@pytest.mark.parametrize("change", ["image", "bundle", "format", "another image"])
def test_what_changed_is_reported_again(batch: Batch, tmp_path: Path, change: str) -> None:
    first, *_ = studies(tmp_path / "in", 2)
    assert batch() == 0
    more: list[str] = []
    if change == "image":
        put(first, chest_bytes(uid="2.25.90001", study="2.25.80001", PixelSpacing=[1.0, 1.0]))
    elif change == "another image":
        put(first.with_name("ap"), chest_bytes(uid="2.25.7", study="2.25.80001", ViewPosition="AP"))
    elif change == "format":
        more = ["--format", "text"]
    else:
        other = tmp_path / "bundle"
        shutil.copytree(TINY, other)
        manifest = other / "manifest.json"
        text = manifest.read_text().replace('"intended_use": "', '"intended_use": "Changed. ', 1)
        manifest.write_text(text)
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
        (other / "manifest.json.sha256").write_text(f"{digest}  manifest.json\n")
        more = ["--bundle", str(other)]
    assert batch(*more) == 0
    assert audited(tmp_path / "out").total() == (4 if change in ("bundle", "format") else 3)
    if change == "format":
        assert {path.suffix for path in (tmp_path / "out" / "reports").iterdir()} == {".txt"}


def test_the_frontal_original_is_taken_and_the_rest_is_left_out_with_its_reason(batch: Batch, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "study"
    put(folder / "a-lateral", chest_bytes(uid="2.25.1", ViewPosition="LATERAL"))
    put(folder / "b-derived", chest_bytes(uid="2.25.2", ImageType=["DERIVED", "SECONDARY"]))
    put(folder / "c-ap", chest_bytes(uid="2.25.3", ViewPosition="AP"))
    put(folder / "deeper" / "d-pa", chest_bytes(uid="2.25.4", ImageType=["DERIVED", "PRIMARY"]))
    put(folder / "e-again", chest_bytes(uid="2.25.4"))
    put(folder / "f-report", chest_bytes(uid="2.25.6", Rows=None, PixelData=None, Modality="SR"))
    assert batch() == 0
    report = only_report(tmp_path)
    assert used(report) == ["2.25.4"]
    assert why(report) == {"lateral_view", "derived", "other_frontal", "duplicate", "no_pixels"}
    assert {image.sop_instance_uid for image in report.images} == {f"2.25.{n}" for n in (1, 2, 3, 4)}


def test_an_image_that_the_gate_refuses_is_followed_by_the_next(batch: Batch, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    blank = chest_bytes(uid="2.25.1", PixelData=bytes(256 * 220 * 2 - 2) + b"\x01\x00")
    put(folder / "blank", blank)
    put(folder / "cut", chest_bytes(uid="2.25.2")[:40_000])
    put(folder / "good", chest_bytes(uid="2.25.3", ViewPosition="AP"))
    assert batch() == 0
    assert used(only_report(tmp_path)) == ["2.25.3"]
    assert why(only_report(tmp_path)) == {"mostly_blank", "truncated"}


@pytest.mark.parametrize(
    ("elements", "state", "code"),
    [
        ({"Modality": "CT"}, "refused", "wrong_modality"),
        ({"BodyPartExamined": "HAND"}, "refused", "wrong_body_part"),
        ({"ViewPosition": "LATERAL"}, "refused", "lateral_view"),
        ({"PixelData": bytes(256 * 220 * 2 - 2) + b"\x01\x00"}, "refused", "mostly_blank"),
        ({"PixelData": None}, "failed", "no_pixels"),
        ({"PhotometricInterpretation": "RGB"}, "failed", "colour"),
    ],
)
def test_a_study_without_a_report_is_listed_with_its_reason(
    batch: Batch, tmp_path: Path, elements: dict[str, object], state: str, code: str
) -> None:
    put(tmp_path / "in" / "x", chest_bytes(study="2.25.5", **elements))
    assert batch() == 3
    assert (row(tmp_path)["outcome"], row(tmp_path)["reason"]) == (state, code)
    page = (tmp_path / "out" / "index.html").read_text()
    assert f"<b>{code}</b>" in page and 'alt="the reported image"' not in page
    assert batch() == 3  # it still stands
    assert audited(tmp_path / "out").total() == 1


def forget_the_version(out: Path, how: str) -> None:
    """Make the ledger that of another version of trrg-sdk, or of one that did not write its version down."""
    with contextlib.closing(sqlite3.connect(out / "ledger.sqlite")) as database:
        old = "DROP TABLE runtime; PRAGMA user_version = 1;"
        database.executescript(old if how == "unknown" else "UPDATE runtime SET sdk = '0.0.1';")


@pytest.mark.parametrize("version", ["other", "unknown"])
def test_what_another_version_refused_is_tried_again_and_nothing_else(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], version: str
) -> None:
    out = tmp_path / "out"
    studies(tmp_path / "in", 2)
    put(tmp_path / "in" / "hand", chest_bytes(uid="2.25.6", study="2.25.5", BodyPartExamined="HAND"))
    assert batch() == 3

    def damaged(*_: object) -> None:
        raise ImportError("half a module")

    for number, reading in enumerate(("dicom_header.read_elements", "dicom.pixel_data.stored_values"), start=3):
        studies(tmp_path / "in", 1, first=number)
        with monkeypatch.context() as patch:
            patch.setattr(f"trrg_sdk.{reading}", damaged)
            assert batch() == 3
    assert states(out) == {"done": 2, "failed": 2, "refused": 1}
    assert batch() == 3 and audited(out).total() == 5, "the same version does not try again"
    forget_the_version(out, version)
    capfd.readouterr()
    assert batch("--dry-run") == 0
    assert "would report 3 of 5 studies; 2 are done already" in capfd.readouterr().out
    assert batch() == 3
    assert states(out) == {"done": 4, "refused": 1}
    assert len(reports(tmp_path)) == 4 == only_lines(tmp_path) - 1
    assert audited(out).total() == 8


def test_a_ledger_of_a_later_version_is_left_alone(batch: Batch, tmp_path: Path) -> None:
    studies(tmp_path / "in", 1)
    assert batch() == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "out" / "ledger.sqlite")) as database:
        database.execute("PRAGMA user_version = 3")
    before = contents(tmp_path / "out")
    assert batch() == 2 and batch("--dry-run") == 2
    assert contents(tmp_path / "out") == before


def test_a_study_that_is_refused_now_loses_its_report(batch: Batch, tmp_path: Path) -> None:
    put(tmp_path / "in" / "x", chest_bytes())
    assert batch() == 0 and reports(tmp_path)
    put(tmp_path / "in" / "x", chest_bytes(BodyPartExamined="HAND"), age_s=7200)
    assert batch() == 3
    assert not reports(tmp_path) and not list((tmp_path / "out" / "pictures").iterdir())


def test_a_tree_as_it_comes(batch: Batch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    studies(folder / "deep" / "er", 2)
    put(folder / "DICOMDIR", chest_bytes(uid="2.25.77", SOPClassUID="1.2.840.10008.1.3.10", Rows=None, PixelData=None))
    put(folder / "readme.txt", b"Open VIEWER.EXE")
    put(folder / "empty", b"")
    put(folder / "photo.jpg", b"\xff\xd8\xff\xe0" + bytes(100))
    put(tmp_path / "elsewhere", chest_bytes(uid="2.25.66", study="2.25.66"))
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    assert batch() == 0
    assert audited(tmp_path / "out").total() == 2
    assert "1 dicomdir, 1 empty, 2 not_dicom, 1 special_file, 2 symbolic_link" in capfd.readouterr().out


def test_the_output_folder_inside_is_no_input(batch: Batch, tmp_path: Path) -> None:
    studies(tmp_path / "in", 1)
    assert batch("--out", tmp_path / "in" / "out") == 0
    put(tmp_path / "in" / "out" / "reports" / "x", chest_bytes(study="2.25.3"))
    assert batch("--out", tmp_path / "in" / "out") == 0
    assert audited(tmp_path / "in" / "out").total() == 1


def test_the_limit_and_the_dry_run(batch: Batch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    studies(tmp_path / "in", 3)
    assert batch("--dry-run") == 0
    assert not (tmp_path / "out").exists()
    assert "would report 3 of 3 studies; 0 are done already" in capfd.readouterr().out
    assert batch("--limit", 2) == 0
    assert audited(tmp_path / "out").total() == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if "sqlite" not in path.name}
    assert batch("--dry-run") == 0
    assert "would report 1 of 3 studies; 2 are done already" in capfd.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if "sqlite" not in path.name}
    assert after == before
    assert batch() == 0
    assert audited(tmp_path / "out").total() == 3


def test_two_at_once_refuse_each_other(batch: Batch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    studies(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    with lock.only_one(tmp_path / "out"):
        assert batch() == 2
    assert "another trrg is writing into this folder" in capfd.readouterr().err
    assert batch() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--format", "fax"], 2, "no output format"),
        (["--device", "cuda"], 5, "cuda"),
        (["--bundle", "/nowhere"], 4, "bundle"),
    ],
)
def test_exit_codes(
    tmp_path: Path, arguments: list[str], code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    studies(tmp_path / "in", 1)
    assert main(["batch", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *arguments]) == code
    said = capfd.readouterr().err
    assert words in said and len(said.splitlines()) == 1


def test_folders_that_make_no_sense(batch: Batch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert batch() == 2
    studies(tmp_path / "in", 1)
    assert batch("--out", tmp_path / "in") == 2
    assert batch("--out", tmp_path) == 2
    assert MARK not in capfd.readouterr().err


def test_a_stop_finishes_the_study_at_hand(batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies(tmp_path / "in", 60)  # more than report_many takes ahead
    once, real = [], Reporter.report_many

    def interrupted(self: Reporter, sources: object, **options: object) -> object:
        for outcome in real(self, sources, **options):  # type: ignore[arg-type]
            if not once:
                once.append(os.kill(os.getpid(), 2))
            yield outcome

    monkeypatch.setattr(Reporter, "report_many", interrupted)
    assert batch("--workers", 1) == 130
    begun = audited(tmp_path / "out").total()
    assert 1 <= begun < 60 and len(reports(tmp_path)) == begun
    assert batch() == 0
    assert set(audited(tmp_path / "out").values()) == {1}
    assert audited(tmp_path / "out").total() == 60


def test_the_second_ctrl_c_stops_at_once(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    studies(tmp_path / "in", 5)

    def twice() -> None:
        os.kill(os.getpid(), 2)
        os.kill(os.getpid(), 2)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "report_many", at_the_first_image(twice))
        assert batch() == 130
    assert "Traceback" not in capfd.readouterr().err and states(tmp_path / "out") == {}
    assert batch() == 0 and set(audited(tmp_path / "out").values()) == {1}


def test_files_that_are_gone_are_forgotten_and_their_reports_kept(batch: Batch, tmp_path: Path) -> None:
    first, *_ = studies(tmp_path / "in", 3)
    assert batch() == 0
    first.rename(tmp_path / "aside")
    assert batch() == 0
    entries, rows = peek(tmp_path / "out")
    assert (len(entries), len(rows), len(reports(tmp_path))) == (2, 3, 3)
    (tmp_path / "aside").rename(first)  # back again: read, and not reported a second time
    assert batch() == 0 and audited(tmp_path / "out").total() == 3


def test_somebody_else_is_given_the_files_before_they_count_as_done(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies(tmp_path / "in", 1)
    put(tmp_path / "in" / "hand", chest_bytes(study="2.25.3", BodyPartExamined="HAND"))
    given: list[str] = []

    def file(paths: Sequence[Path]) -> None:
        assert all(path.is_file() for path in paths)
        given.extend(path.name for path in paths)
        if len(given) == 1:
            raise DeviceError("the queue is not there")

    options = replace(open_outputs("json"), filed=file)
    reporter = Reporter(TINY)
    for _ in range(3):
        with contextlib.suppress(DeviceError), Job(tmp_path / "in", tmp_path / "out", options).opened(reporter) as job:
            job.run(Lines(io.StringIO()), lock.Stop())
    name = hashlib.sha256(b"2.25.80001").hexdigest()[:16] + ".json"
    assert given == [name, name]  # once more after the failure, and not after the success


def test_a_device_that_fails_stops_the_batch(batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise DeviceError("the device failed")

    studies(tmp_path / "in", 3)
    monkeypatch.setattr(Reporter, "report_many", at_the_first_image(broken))
    assert batch() == 5
    assert states(tmp_path / "out") == {}
    monkeypatch.undo()


def test_every_real_file_is_reported_or_has_a_reason(
    batch: Batch, tmp_path: Path, shared_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shared_data / "dicom", tmp_path / "in")
    assert batch("--settle", "0") == 3
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "summary.csv").read_text())))
    assert all(found["outcome"] == "done" or (found["reason"] and found["message"]) for found in rows)
    assert len(rows) > 30
    outcomes = {found["outcome"] for found in rows}
    assert {"done", "refused"} <= outcomes
    passed_over = capfd.readouterr().out.splitlines()[-1]
    assert passed_over == "files passed over: 2 not_dicom"  # the list of the files, and what no SOP class names
