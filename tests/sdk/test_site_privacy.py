"""A marked patient goes through everything; then every byte that was written or said is searched for the marks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from tests.sdk.chest_dicom import MARK, chest_bytes
from tests.sdk.site_folder import command, environment, put, run, states

UIDS = ("2.25.424242", "2.25.434343")
MARKS = [mark.encode() for mark in (MARK, "19010203", "19990807", *UIDS)]


def marked_tree(folder: Path) -> None:
    """Studies that are reported, refused, cut off, broken and packed; names of files and folders are marked too."""
    whole = chest_bytes(uid=UIDS[0] + "1", study=UIDS[1] + "1")
    put(folder / MARK / f"{MARK}.dcm", whole)
    put(folder / MARK / "cut.dcm", chest_bytes(uid=UIDS[0] + "2", study=UIDS[1] + "2")[:60_000])
    put(folder / f"{MARK}-hand", chest_bytes(uid=UIDS[0] + "3", study=UIDS[1] + "3", BodyPartExamined="HAND"))
    put(folder / f"{MARK}-broken", whole[:700] + b"\xff" * 40 + whole[740:])
    put(folder / f"{MARK}-odd", chest_bytes(uid=UIDS[0] + "4", study=UIDS[1] + "4", BitsStored=77, Rows=3))
    put(folder / f"{MARK}-lateral", chest_bytes(uid=UIDS[0] + "5", study=UIDS[1] + "1", ViewPosition="LATERAL"))
    put(folder / f"{MARK}.txt", f"{MARK} is ill".encode())
    (folder / f"{MARK}-link").symlink_to(folder / MARK)
    packed = folder / f"{MARK}.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(f"{MARK}/{MARK}", chest_bytes(uid=UIDS[0] + "6", study=UIDS[1] + "6"))
        archive.writestr(f"{MARK}/cut", chest_bytes(uid=UIDS[0] + "7", study=UIDS[1] + "7")[:900])
    put(packed, packed.read_bytes())
    put(folder / f"{MARK}-bad.zip", packed.read_bytes()[:-40])


def leaks(out: Path, *, but: tuple[str, ...] = ()) -> list[str]:
    found = []
    for path in sorted(out.rglob("*")):
        names = str(path.relative_to(out)).encode()
        content = path.read_bytes() if path.is_file() and not path.name.endswith(but or ("/",)) else b""
        found += [f"{path.name}: {mark!r}" for mark in MARKS if mark in content or mark in names]
    return found


def said(*streams: str) -> list[bytes]:
    return [mark for mark in MARKS if any(mark in stream.encode() for stream in streams)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    marked_tree(tmp_path / "in")
    return tmp_path / "in"


def test_a_batch_leaks_nothing(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for more in (("--dry-run",), (), ()):
        done = run("batch", tree, "--out", out, "--threads", "1", "--format", "text,json", *more)
        assert done.returncode == (0 if more else 3), done.stderr
        assert not said(done.stdout, done.stderr), (done.stdout, done.stderr)
    assert states(out)["done"] == 2 and states(out).total() >= 5
    assert not leaks(out, but=(".json",))
    assert any(UIDS[0].encode() in path.read_bytes() for path in (out / "reports").glob("*.json"))  # the search works
    full = run("batch", tree, "--out", f"/proc/{MARK}", "--threads", "1")
    assert full.returncode == 2 and not said(full.stdout, full.stderr)


def test_deidentified_outputs_leak_nothing_either(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    pytest.importorskip("fhir.resources")
    pytest.importorskip("hl7apy")
    key = put(tmp_path / "key", os.urandom(32))
    formats = "text,json,html,sr,sr-basic,sr-3d,heat,fhir,fhir-r5,hl7"
    arguments = ("batch", tree, "--out", tmp_path / "out", "--threads", "1", "--format", formats)
    done = run(*arguments, "--deidentify", key)
    assert done.returncode == 3, done.stderr
    assert len(list((tmp_path / "out" / "reports").iterdir())) == 2 * len(formats.split(","))
    assert not leaks(tmp_path / "out") and not said(done.stdout, done.stderr)
    assert run(*arguments).returncode == 3  # without the key it is another result, which replaces the first
    assert leaks(tmp_path / "out"), "the search works"
    assert {line.split(": ")[0].split(".", 1)[1] for line in leaks(tmp_path / "out")} <= {
        *("json", "sr.dcm", "sr-basic.dcm", "sr-3d.dcm", "heat.dcm", "fhir.json", "fhir-r5.json", "hl7")
    }


def test_a_watch_leaks_nothing(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("watchdog")
    arguments = command("watch", tree, "--out", tmp_path / "out", "--threads", "1", "--settle", "0.2")
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "out" / "audit.jsonl"
    for _ in range(600):
        if log.exists() and log.read_text().count("\n") >= 5:
            break
        time.sleep(0.1)
    title = Path(f"/proc/{process.pid}/comm").read_bytes()
    process.send_signal(signal.SIGTERM)
    streams = process.communicate(timeout=60)
    assert process.returncode == 0 and states(tmp_path / "out").total() >= 5
    assert not leaks(tmp_path / "out") and not said(*streams, title.decode())


def test_only_the_user_may_read_what_is_written(tree: Path, tmp_path: Path) -> None:
    assert run("batch", tree, "--out", tmp_path / "out", "--threads", "1").returncode == 3
    paths = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert len(paths) > 10
    assert not [path for path in paths if path.stat().st_mode & 0o077]
