from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.sdk.chest_dicom import MARK, chest_bytes
from trrg_sdk import Bundle, Report
from trrg_sdk.backends import fake
from trrg_sdk.cli import build_parser, main

TINY = Path(__file__).parent / "tiny_bundle"
TEXT = "FINDINGS: There is a pleural effusion. IMPRESSION: Pleural effusion."


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.dcm"
    path.write_bytes(chest_bytes(uid="2.25.42"))
    return path


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``trrg report`` with the tiny bundle and the fake backend."""
    script = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    opened = fake.open_backend(script=script)
    monkeypatch.setattr("trrg_sdk.reporter.open_backend", lambda **_: opened)
    return lambda *arguments: main(["report", *map(str, arguments), "--bundle", str(TINY)])


def test_report_goes_to_the_screen(
    report: Callable[..., int], study: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert report(study) == 0
    shown = capfd.readouterr()
    assert "There is a pleural effusion. [" in shown.out
    assert "DRAFT" in shown.out
    assert "device cpu" in shown.out
    assert shown.err == ""
    assert list(tmp_path.iterdir()) == [study]


def test_json_on_the_screen_is_json(report: Callable[..., int], study: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert report(study, "--format", "json") == 0
    assert Report.from_json(capfd.readouterr().out).text == TEXT


def test_forced_clues_reach_the_report(
    report: Callable[..., int], study: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert report(study, "--format", "json", "--force-clue", "Pleural Effusion=0.9", "--force-clue", "Edema=0") == 0
    clues = Report.from_json(capfd.readouterr().out).clues
    assert clues["Pleural Effusion"].probability == 0.9
    assert [clue.name for clue in clues if clue.forced] == ["Edema", "Pleural Effusion"]


def test_files_are_named_by_a_hash(
    report: Callable[..., int], study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert report(study, "--out", out, "--format", "text,json") == 0
    stem = "report-" + hashlib.sha256(b"2.25.42").hexdigest()[:16]
    assert sorted(path.name for path in out.iterdir()) == [f"{stem}.json", f"{stem}.txt"]
    assert Report.from_json((out / f"{stem}.json").read_bytes()).text == TEXT
    assert capfd.readouterr().out == f"{study}: {stem}.txt, {stem}.json\n"
    assert report(study, "--out", out, "--format", "text,json") == 0
    assert len(list(out.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_a_usage_error(
    report: Callable[..., int], study: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert report(study, "--out", study) == 2
    assert capfd.readouterr().err.startswith("trrg: --out: ")


def test_a_refusal_does_not_stop_the_others(
    report: Callable[..., int], study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    foot = tmp_path / "foot.dcm"
    foot.write_bytes(chest_bytes(BodyPartExamined="FOOT"))
    absent = tmp_path / "absent.dcm"
    assert report(foot, study, absent) == 3
    shown = capfd.readouterr()
    assert f"{study}:\n" in shown.out
    assert shown.out.count("DRAFT") == 1
    lines = shown.err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [str(foot), str(absent)]
    assert all(line.startswith("trrg: ") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--format", "pdf"], 2),
        (["--force-clue", "Nothing=0.5"], 2),
        (["--force-clue", "Edema=2"], 2),
        (["--bundle", "no such folder"], 4),
    ],
)
def test_exit_codes_of_report(
    report: Callable[..., int], study: Path, arguments: list[str], code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(study), *(["--bundle", str(TINY)] if code == 2 else []), *arguments]) == code
    shown = capfd.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"trrg: [^\n]+\n", shown.err)


@pytest.mark.parametrize(("device", "code"), [("tpu", 2), ("cuda", 5)])
def test_exit_codes_of_devices(study: Path, device: str, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine may have the device")
    assert main(["report", str(study), "--bundle", str(TINY), "--device", device]) == code
    assert re.fullmatch(r"trrg: [^\n]+\n", capfd.readouterr().err)


def test_a_batch_needs_a_place_for_its_outputs(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "x"]) == 2
    assert "--out" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["report"], ["report", "x", "--force-clue", "Edema"], ["report", "x", "--threads", "a"]],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: trrg" in capfd.readouterr().err


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["--version"])
    assert caught.value.code == 0
    assert re.fullmatch(r"trrg \d+\.\d+\.\d+\n", capfd.readouterr().out)


def test_verify_says_ok(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(TINY)]) == 0
    assert capfd.readouterr().out.startswith(f"ok: bundle {Bundle.load(TINY).manifest.bundle_id}")


def test_verify_names_the_changed_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path in TINY.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(TINY)
            target.parent.mkdir(exist_ok=True, parents=True)
            target.write_bytes(path.read_bytes())
    changed = tmp_path / "graphs" / "fusion.onnx"
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    assert main(["verify", str(tmp_path)]) == 4
    assert "graphs/fusion.onnx" in capfd.readouterr().err


def test_inspect_shows_what_matters(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(TINY)]) == 0
    text = capfd.readouterr().out
    bundle = Bundle.load(TINY)
    for expected in (
        bundle.manifest_sha256,
        bundle.manifest.intended_use,
        "graphs/vision.onnx",
        "Pleural Effusion",
    ):
        assert expected in text


def test_doctor_is_a_table(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capfd.readouterr().out
    for row in (
        "python",
        "numpy",
        "codec JPEG2000 ",
        "backend onnxruntime",
        "device cpu",
        "output sr-3d",
        "embedded bundle",
    ):
        assert re.search(rf"^{row} *\S", text, re.MULTILINE), row


def test_doctor_says_why_a_backend_is_missing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["doctor"]) == 0
    assert re.search(r"^device cpu +.*pip install 'trrg-sdk\[cpu\]'", capfd.readouterr().out, re.MULTILINE)


def test_the_patient_stays_out_of_every_stream_and_name(
    report: Callable[..., int], study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    foot = tmp_path / "foot.dcm"
    foot.write_bytes(chest_bytes(BodyPartExamined="FOOT"))
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(chest_bytes()[:-2000])
    out = tmp_path / "out"
    assert report(study, foot, broken, "--format", "text,json") == 3
    assert report(study, foot, broken, "--format", "text,json", "--out", out) == 3
    shown = capfd.readouterr()
    written = "".join(path.name + path.read_text() for path in out.iterdir())
    for secret in (MARK, "19010203", "19990807"):
        assert secret not in shown.out + shown.err + written


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trrg_sdk", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_a_process_with_a_real_runtime(study: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = run("report", study, "--bundle", TINY, "--device", "cpu", "--format", "json")
    # Random weights write anything: a report, or nothing that is a sentence. Either way no traceback.
    if done.returncode == 0:
        assert json.loads(done.stdout)["draft"] is True
    else:
        assert done.returncode == 3
        assert "wrote no sentence" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "trrg_sdk", "doctor"]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")
