"""The command `trrg receive`: its options, log and memory, and that neither a stop nor a kill loses anything."""

from __future__ import annotations

import random
import signal
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra site")

from tests.sdk.chest_dicom import MARK
from tests.site.modality import data_set, files_of, made, send
from tests.site.peers import LOCAL, free_port, listens, started, until
from trrg_sdk.cli import main
from trrg_sdk.site.spool import hashed


def command(spool: Path, port: int, timeout: float) -> list[object]:
    options = ["--spool", spool, "--port", port, "--study-timeout", timeout]
    return [sys.executable, "-m", "trrg_sdk", "receive", *options]


def test_a_receiver_that_was_killed_amid_a_study_goes_on_with_it(tmp_path: Path) -> None:
    from pynetdicom import AE

    spool, log, port = tmp_path / "spool", tmp_path / "log", free_port()
    first, second = (made(tmp_path, f"{n}.dcm", uid=f"2.25.60{n}", study="2.25.6") for n in range(2))
    entity = AE("MODALITY")
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.1.2.1")
    with started(command(spool, port, 60), log) as process:
        until(lambda: listens(port))
        association = entity.associate(LOCAL, port, ae_title="TRRG")
        assert association.send_c_store(first).Status == 0
        process.kill()
        process.wait()
    until(lambda: not association.is_established)
    assert len(files_of(spool, "open")) == 1, "an acknowledged object is gone"
    (spool / "incoming" / "half.part").write_bytes(b"half of an object")
    with started(command(spool, port, 1.0), log) as process:
        until(lambda: listens(port))
        assert send(port, second).returncode == 0
        until(lambda: len(files_of(spool)) == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    assert [folder.name for folder in (spool / "ready").iterdir()] == [hashed("2.25.6")]
    assert list((spool / "incoming").iterdir()) == []
    text = log.read_text(encoding="utf-8")
    assert "resuming 1 studies" in text
    assert "Traceback" not in text


def test_a_stop_lets_a_running_association_end(tmp_path: Path) -> None:
    from pynetdicom import AE

    spool, log, port = tmp_path / "spool", tmp_path / "log", free_port()
    entity = AE("MODALITY")
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.1.2.1")
    with started(command(spool, port, 60), log) as process:
        until(lambda: listens(port))
        association = entity.associate(LOCAL, port, ae_title="TRRG")
        assert association.is_established
        process.send_signal(signal.SIGINT)
        until(lambda: not listens(port))
        assert association.send_c_store(made(tmp_path, "a.dcm")).Status == 0
        association.release()
        assert process.wait(timeout=20) == 0
    assert len(files_of(spool, "open")) == 1


def test_no_patient_data_in_the_log_or_in_a_name(tmp_path: Path) -> None:
    spool, log, port = tmp_path / "spool", tmp_path / "log", free_port()
    source = made(tmp_path, "a.dcm", uid="2.25.777001", study="2.25.777002")
    broken = made(tmp_path, "b.dcm", uid="2.25.777003", study="2.25.12345678")
    broken.write_bytes(broken.read_bytes().replace(b"2.25.12345678", f"2.25.{MARK}".encode()))
    with started(command(spool, port, 0.5), log) as process:
        until(lambda: listens(port))
        assert send(port, source).returncode == 0
        assert send(port, broken).returncode != 0
        until(lambda: files_of(spool))
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
    said = log.read_text(encoding="utf-8") + "\n".join(str(path) for path in spool.rglob("*"))
    assert "is complete" in said
    for secret in (MARK, "777001", "777002", "777003", "19010203"):
        assert secret not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--spool DIR"),
        (("--spool", "s", "--port", "0"), "port: expected 1 to 65535, got 0"),
        (("--spool", "s", "--bind", "somewhere"), "bind must be an IP address"),
        (("--spool", "s", "--peer", "10.0.0.1/8"), "peers must be IP addresses or networks"),
        (("--spool", "s", "--aet", "AN AE TITLE"), "aet: expected an AE title"),
        (("--spool", "s", "--calling", "A\\B"), r"calling_aets[0]: expected an AE title"),
        (("--site", "x.toml", "--port", "104"), "x.toml"),
    ],
)
def test_wrong_options_are_named(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["receive", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_spool_that_cannot_be_written_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    assert main(["receive", "--spool", str(tmp_path / "file")]) == 2
    assert "cannot use the spool" in capsys.readouterr().err


def test_without_the_extra_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    assert main(["receive", "--spool", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "trrg: DICOM networking needs an extra: pip install 'trrg-sdk[site]'\n"


@pytest.mark.slow
def test_a_large_object_is_never_whole_in_memory(tmp_path: Path) -> None:
    spool, log, port = tmp_path / "spool", tmp_path / "log", free_port()
    rows = 12_000
    large = made(tmp_path, "large.dcm", uid="2.25.12", Rows=rows, Columns=rows, PixelData=bytes(2 * rows * rows))
    with started(command(spool, port, 1.0), log) as process:
        until(lambda: listens(port))
        assert send(port, made(tmp_path, "small.dcm")).returncode == 0
        before = peak_kib(process.pid)
        assert send(port, large).returncode == 0
        grown = peak_kib(process.pid) - before
        until(lambda: len(files_of(spool)) == 2)
    assert large.stat().st_size > 270 * 2**20
    assert grown < 40 * 2**10, f"{grown} KiB"


def peak_kib(process: int) -> int:
    (line,) = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


@pytest.mark.slow
def test_kills_at_any_moment_lose_and_double_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    spool, log, port, rng = tmp_path / "spool", tmp_path / "log", free_port(), random.Random(3)
    files = [made(tmp_path, f"{n}.dcm", uid=f"2.25.88{n}", study=f"2.25.7{n // 3}") for n in range(18)]
    left = list(files)
    while left:
        with started(command(spool, port, 2.0), log) as process:
            until(lambda: listens(port))
            killer = threading.Timer(rng.uniform(0.1, 2.0), process.kill)
            killer.start()
            while left and process.poll() is None:
                if send(port, left[0]).returncode == 0:
                    left.pop(0)
            killer.join()
            process.wait()
    with started(command(spool, port, 1.0), log) as process:
        until(lambda: len(files_of(spool)) == len(files), seconds=30)
    names = [path.name for path in files_of(spool)]
    assert sorted(names) == sorted(f"{hashed(f'2.25.88{n}')}.dcm" for n in range(len(files)))
    by_name = {path.name: path for path in files_of(spool)}
    for number, source in enumerate(files):
        assert data_set(by_name[f"{hashed(f'2.25.88{number}')}.dcm"]) == data_set(source)
    assert "Traceback" not in log.read_text(encoding="utf-8")
