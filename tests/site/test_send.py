"""The queue and its courier: each object reaches Orthanc or dcmtk's storescp once, over a kill and a restart too."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="needs the extra site")

from tests.sdk.chest_dicom import MARK, chest_bytes
from tests.site.peers import LOCAL, Orthanc, dcmtk, free_port, listens, orthanc, run, started, until
from tests.site.sending import Clock, courier_of, image, only, scp, site_of, structured_report
from trrg_sdk.cli import main
from trrg_sdk.site.config import SiteConfig
from trrg_sdk.site.courier import Courier
from trrg_sdk.site.receive import Receiver
from trrg_sdk.site.send_queue import SendQueue


@contextmanager
def receiving(site: SiteConfig, courier: Courier) -> Iterator[None]:
    assert site.receive is not None
    receiver, stop = Receiver(site.receive, site.limits, committed=courier.reported), threading.Event()
    receiver.start()
    thread = threading.Thread(target=receiver.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=30)


@contextmanager
def pacs_and_site(folder: Path) -> Iterator[tuple[Orthanc, SiteConfig]]:
    own_port = free_port()
    us = {"AET": "TRRG", "Host": LOCAL, "Port": own_port, "AllowStorageCommitment": True}
    with orthanc(folder / "pacs", modalities={"trrg": us}) as pacs:
        yield pacs, site_of(folder, pacs.port, aet=pacs.aet, commitment=True, own_port=own_port)


@pytest.mark.slow
def test_a_study_from_storescu_gets_its_report_into_orthanc_which_commits_to_keep_it(tmp_path: Path) -> None:
    source = image(tmp_path, study="2.25.4")
    with pacs_and_site(tmp_path) as (pacs, site):
        courier = courier_of(site)
        with receiving(site, courier):
            for aet, port in ((pacs.aet, pacs.port), ("TRRG", site.receive.port if site.receive else 0)):
                assert run(dcmtk("storescu"), "-aec", aet, LOCAL, port, source).returncode == 0
            (arrived,) = until(lambda: list((tmp_path / "spool" / "ready").rglob("*.dcm")))
            report = structured_report(tmp_path, arrived)
            assert courier.queue.enqueue(report, "pacs")
            assert not courier.queue.enqueue(report, "pacs")
            courier.round()
            until(lambda: only(courier).state == "committed", seconds=30)
            courier.round()
        (study,) = pacs.studies()
        assert study["MainDicomTags"]["StudyInstanceUID"] == "2.25.4"
        assert {tags["Modality"] for tags in pacs.instances()} == {"DX", "SR"}
        (kept,) = [tags for tags in pacs.instances() if tags["Modality"] == "SR"]
        assert kept["SOPInstanceUID"] == "2.25.4200001"
        assert kept["VerificationFlag"] == "UNVERIFIED"


@pytest.mark.slow
def test_orthanc_does_not_commit_to_what_it_has_lost_and_gets_it_again(tmp_path: Path) -> None:
    clock = Clock()
    with pacs_and_site(tmp_path) as (pacs, site):
        courier = courier_of(site, clock)
        with receiving(site, courier):
            courier.queue.enqueue(image(tmp_path), "pacs")
            (item,) = courier.queue.due()
            courier.queue.requested([item], None)  # as if it had been stored, and was lost there since
            clock.now += site.queue.commitment_timeout_s + 1
            courier.round()
            until(lambda: only(courier).state == "waiting", seconds=30)
            assert "reason 0112" in only(courier).note
            clock.now += site.queue.retry_first_s + 1
            courier.round()
            until(lambda: only(courier).state == "committed", seconds=30)
        assert len(pacs.instances()) == 1


@pytest.mark.slow
def test_trrg_receive_sends_what_other_processes_queue_over_a_kill(tmp_path: Path) -> None:
    with pacs_and_site(tmp_path) as (pacs, site):
        assert site.receive is not None
        (tmp_path / "site.toml").write_text(
            f'[outputs]\nfolder = "out"\n[receive]\nspool = "spool"\nport = {site.receive.port}\n'
            "[limits]\nfree_mib = 0\n[queue]\nretry_first_s = 1\ncommitment_timeout_s = 5\n"
            f'[[nodes]]\nname = "pacs"\naet = "ORTHANC"\nhost = "{LOCAL}"\nport = {pacs.port}\n',
            encoding="utf-8",
        )
        command = [sys.executable, "-m", "trrg_sdk", "receive", "--site", tmp_path / "site.toml"]
        queue, port = SendQueue(site.queue_file, site.queue), site.receive.port
        for number in range(30):
            queue.enqueue(image(tmp_path, f"2.25.99{number}"), "pacs")
        with started(command, tmp_path / "log") as process:
            until(lambda: queue.counts().get("waiting", 0) < 30)
            process.kill()
            process.wait()
        with started(command, tmp_path / "log") as process:
            until(lambda: listens(port))
            until(lambda: queue.counts() == {"committed": 30}, seconds=60)
            process.terminate()
            assert process.wait(timeout=30) == 0
        assert len(pacs.instances()) == 30
    said = (tmp_path / "log").read_text(encoding="utf-8")
    assert "commits to keeping it" in said
    assert "2.25." not in said
    assert MARK not in said
    assert "Traceback" not in said


def test_storescp_offers_no_commitment_and_gets_the_object(tmp_path: Path) -> None:
    port, folder = free_port(), tmp_path / "received"
    folder.mkdir()
    source = image(tmp_path)
    with started([dcmtk("storescp"), "-aet", "PACS", "-od", folder, port], tmp_path / "log"):
        until(lambda: listens(port))
        courier = courier_of(site_of(tmp_path, port, commitment=True))
        courier.queue.enqueue(source, "pacs")
        courier.round()
    (arrived,) = folder.iterdir()
    assert list(pydicom.dcmread(arrived)) == list(pydicom.dcmread(source))
    assert (only(courier).state, only(courier).note) == ("stored", "the node offers no storage commitment")


def test_a_changed_object_is_sent_again_an_equal_one_is_not(tmp_path: Path) -> None:
    with scp(0x0000) as (port, asked):
        courier = courier_of(site_of(tmp_path, port))
        for age in ("055Y", "055Y", "056Y"):
            courier.queue.enqueue(image(tmp_path, PatientAge=age), "pacs")
            courier.round()
    assert asked == ["2.25.42"] * 2


def test_two_couriers_do_not_send_at_once(tmp_path: Path) -> None:
    with scp(0x0000) as (port, asked):
        courier = courier_of(site_of(tmp_path, port))
        courier.queue.enqueue(image(tmp_path), "pacs")
        with courier._alone() as alone:
            assert alone
            courier_of(site_of(tmp_path, port)).round()
        assert not asked
        courier.round()
    assert len(asked) == 1


def test_the_queue_holds_no_uid_in_clear_and_no_patient(tmp_path: Path) -> None:
    courier = courier_of(site_of(tmp_path, free_port()))
    path = tmp_path / "x.dcm"
    path.write_bytes(chest_bytes(uid="2.25.777001"))
    courier.queue.enqueue(path, "pacs")
    courier.round()
    with sqlite3.connect(courier.queue.path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    content = courier.queue.path.read_bytes()
    assert b"x.dcm" in content
    assert b"777001" not in content
    assert MARK.encode() not in content
    assert courier.queue.path.stat().st_mode & 0o077 == 0


def test_trrg_send(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = image(tmp_path)
    with scp(0xA900) as (port, asked):
        (tmp_path / "site.toml").write_text(
            f'[outputs]\nfolder = "out"\n[[nodes]]\nname = "pacs"\naet = "PACS"\nhost = "{LOCAL}"\nport = {port}\n',
            encoding="utf-8",
        )
        arguments = ["send", "--site", str(tmp_path / "site.toml")]
        assert main([*arguments, "--to", "pacs", str(source)]) == 3
        assert "failed" in capsys.readouterr().out
        assert main(arguments) == 3
        assert main([*arguments, "--retry"]) == 3
    assert len(asked) == 2
    capsys.readouterr()
    assert main([*arguments, str(source)]) == 2
    assert "Name a node with --to" in capsys.readouterr().err
    assert main([*arguments, "--to", "other", str(source)]) == 2
    assert "no such node" in capsys.readouterr().err
