"""The queue and its courier against real peers: Orthanc, dcmtk's storescp, and peers that misbehave."""

from __future__ import annotations

import socket
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="needs the extra site")

from tests.sdk.chest_dicom import MARK, chest_bytes
from tests.site.peers import LOCAL, Orthanc, dcmtk, free_port, listens, orthanc, run, started, until
from trrg_sdk.cli import main
from trrg_sdk.errors import DicomError
from trrg_sdk.site.config import LimitsConfig, NodeConfig, OutputsConfig, QueueConfig, ReceiveConfig, SiteConfig
from trrg_sdk.site.courier import Courier
from trrg_sdk.site.receive import Receiver
from trrg_sdk.site.send import echo, judge
from trrg_sdk.site.send_queue import SendQueue

SR = "1.2.840.10008.5.1.4.1.1.88.22"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def site_of(
    folder: Path, port: int, *, aet: str = "PACS", commitment: bool = False, own_port: int = 11112
) -> SiteConfig:
    return SiteConfig(
        outputs=OutputsConfig(folder=folder / "out"),
        receive=ReceiveConfig(spool=folder / "spool", port=own_port, study_timeout_s=0.5, stop_timeout_s=5.0),
        limits=LimitsConfig(free_mib=0, reply_timeout_s=5.0),
        nodes=(NodeConfig("pacs", aet, LOCAL, port, commitment),),
    )


def courier_of(site: SiteConfig, clock: Clock | None = None) -> Courier:
    return Courier(site, SendQueue(site.queue_file, site.queue, clock=clock or Clock()))


def only(courier: Courier) -> Any:
    (item,) = courier.queue.items()
    return item


def image(folder: Path, uid: str = "2.25.42", **elements: Any) -> Path:
    path = folder / f"{uid}.dcm"
    path.write_bytes(chest_bytes(uid=uid, **elements))
    return path


def structured_report(folder: Path, of: Path) -> Path:
    """A minimal Enhanced SR in the study of an image."""
    source, report = pydicom.dcmread(of, stop_before_pixels=True), pydicom.Dataset()
    for keyword in "PatientName PatientID PatientBirthDate AccessionNumber StudyInstanceUID StudyDate".split():
        setattr(report, keyword, source[keyword].value)
    report.SOPClassUID, report.SOPInstanceUID = SR, "2.25.4200001"
    report.SeriesInstanceUID, report.Modality = "2.25.4200002", "SR"
    report.ValueType, report.ContinuityOfContent = "CONTAINER", "SEPARATE"
    report.CompletionFlag, report.VerificationFlag = "PARTIAL", "UNVERIFIED"
    report.file_meta = pydicom.dataset.FileMetaDataset()
    report.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    path = folder / "sr.dcm"
    report.save_as(path, enforce_file_format=True)
    return path


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


def test_a_peer_that_is_down_is_tried_again_after_growing_pauses_over_restarts_until_we_give_up(tmp_path: Path) -> None:
    clock, site = Clock(), site_of(tmp_path, free_port())
    courier_of(site, clock).queue.enqueue(image(tmp_path), "pacs")
    pauses, last = [], clock.now
    for _ in range(500):
        courier = courier_of(site, clock)  # each time as a new process would
        if courier.queue.due():
            pauses.append(clock.now - last)
            last = clock.now
            courier.round()
            if only(courier).state == "failed":
                break
            clock.now += site.queue.retry_first_s
        else:
            clock.now += site.queue.retry_longest_s / 4
    assert only(courier).state == "failed"
    assert "gave up after" in only(courier).note
    assert "Connection refused" in only(courier).note
    assert pauses[1] < pauses[5] <= site.queue.retry_longest_s * 1.5
    assert clock.now - Clock.now > site.queue.give_up_hours * 3600
    assert courier.queue.enqueue(tmp_path / "2.25.42.dcm", "pacs"), "what has failed may be queued again"


def test_the_pause_doubles_and_has_an_end(tmp_path: Path) -> None:
    clock = Clock()
    queue = SendQueue(tmp_path / "q", QueueConfig(retry_first_s=10, retry_longest_s=50), clock=clock)
    queue.enqueue(image(tmp_path), "pacs")
    waits = []
    for _ in range(5):
        (item,) = queue.due()
        queue.later(item, "down")
        start = clock.now
        while not queue.due():
            clock.now += 1
        waits.append(clock.now - start)
    assert waits == [10, 20, 40, 50, 50]


def test_storescp_that_rejects(tmp_path: Path) -> None:
    """It may close before it has read what we asked; the system then drops its answer with the connection."""
    port, items = free_port(), []
    with started([dcmtk("storescp"), "--refuse", "-od", tmp_path, port], tmp_path / "log"):
        until(lambda: listens(port))
        for turn in range(5):
            folder = tmp_path / str(turn)
            folder.mkdir()
            courier = courier_of(site_of(folder, port))
            courier.queue.enqueue(image(folder), "pacs")
            courier.round()
            items.append(only(courier))
    assert {item.state for item in items} == {"waiting"}
    said = ["rejects the association" in item.note for item in items]
    assert any(said) and all(clear or "no DICOM answer" in item.note for clear, item in zip(said, items, strict=True))


@pytest.mark.parametrize(
    ("options", "called", "state", "note"),
    [
        (("--implicit",), "PACS", "stored", ""),
        (("--abort-after",), "PACS", "waiting", "the connection ended before the node answered"),
        (("--abort-during",), "PACS", "waiting", "the connection ended before the node answered"),
    ],
)
def test_storescp_that_misbehaves(tmp_path: Path, options: tuple[str, ...], called: str, state: str, note: str) -> None:
    port = free_port()
    with started([dcmtk("storescp"), *options, "-od", tmp_path, port], tmp_path / "log"):
        until(lambda: listens(port))
        courier = courier_of(site_of(tmp_path, port, aet=called))
        courier.queue.enqueue(image(tmp_path), "pacs")
        courier.round()
    assert only(courier).state == state
    assert note in only(courier).note


@pytest.mark.slow
def test_orthanc_that_does_not_answer_to_the_ae_title_is_tried_again(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs", modalities={}) as pacs:
        site = site_of(tmp_path, pacs.port, aet="WRONG")
        courier = courier_of(site)
        courier.queue.enqueue(image(tmp_path), "pacs")
        courier.round()
        assert only(courier).state == "waiting"
        assert "called AE title not recognized" in only(courier).note
        assert "called AE title not recognized" in echo(site.nodes[0], "TRRG", site.limits)


@contextmanager
def scp(status: int, sop_class: str = "1.2.840.10008.5.1.4.1.1.1.1") -> Iterator[tuple[int, list[str]]]:
    """A peer that answers every C-STORE with one status."""
    from pynetdicom import AE, evt

    asked: list[str] = []

    def answer(event: Any) -> int:
        asked.append(event.request.AffectedSOPInstanceUID)
        return status

    entity, port = AE("PACS"), free_port()
    entity.add_supported_context(sop_class)
    server = entity.start_server((LOCAL, port), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)])
    try:
        yield port, asked
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (0x0000, "stored"),
        (0xB000, "stored"),
        (0x0111, "stored"),
        (0xA700, "waiting"),
        (0x0110, "waiting"),
        (0xA900, "failed"),
        (0xC123, "failed"),
        (0x0122, "failed"),
        (0x0124, "failed"),
    ],
)
def test_what_a_status_makes_of_an_object(tmp_path: Path, status: int, state: str) -> None:
    clock = Clock()
    with scp(status) as (port, asked):
        courier = courier_of(site_of(tmp_path, port), clock)
        courier.queue.enqueue(image(tmp_path), "pacs")
        for _ in range(3):
            courier.round()
            clock.now += 300
    assert only(courier).state == state
    assert len(asked) == (3 if state == "waiting" else 1)
    if status:
        assert f"{status:04X}" in only(courier).note


def test_a_sop_class_that_the_node_does_not_support_fails_and_the_others_are_sent(tmp_path: Path) -> None:
    with scp(0x0000, sop_class=SR) as (port, asked):
        courier = courier_of(site_of(tmp_path, port))
        source = image(tmp_path)
        courier.queue.enqueue(source, "pacs")
        courier.queue.enqueue(structured_report(tmp_path, source), "pacs")
        courier.round()
    states = {item.state: item.note for item in courier.queue.items()}
    assert (
        states["failed"]
        == "the node does not support Digital X-Ray Image Storage - For Presentation in Explicit VR Little Endian"
    )
    assert asked == ["2.25.4200001"]


def test_a_file_that_is_gone_fails(tmp_path: Path) -> None:
    courier = courier_of(site_of(tmp_path, free_port()))
    source = image(tmp_path)
    courier.queue.enqueue(source, "pacs")
    source.unlink()
    courier.round()
    assert only(courier).state == "failed"


def test_a_changed_object_is_sent_again_an_equal_one_is_not(tmp_path: Path) -> None:
    with scp(0x0000) as (port, asked):
        courier = courier_of(site_of(tmp_path, port))
        for age in ("055Y", "055Y", "056Y"):
            courier.queue.enqueue(image(tmp_path, PatientAge=age), "pacs")
            courier.round()
    assert asked == ["2.25.42"] * 2


def test_what_is_no_dicom_is_not_queued(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no DICOM")
    with pytest.raises(DicomError, match="cannot be read as a DICOM file"):
        courier_of(site_of(tmp_path, 104)).queue.enqueue(tmp_path / "x", "pacs")


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


def test_a_node_that_never_commits_is_asked_twice_and_reported(tmp_path: Path) -> None:
    clock = Clock()
    courier = courier_of(site_of(tmp_path, free_port(), commitment=True), clock)
    courier.queue.enqueue(image(tmp_path), "pacs")
    courier.queue.to_be_asked(only(courier))
    for _ in range(4):
        clock.now += 3601
        courier.round()
    assert only(courier).state == "uncommitted"
    assert courier.queue.overdue() == []


def test_a_peer_that_accepts_and_says_nothing_is_left_after_the_time_out(tmp_path: Path) -> None:
    with socket.create_server((LOCAL, 0)) as silent:
        node = NodeConfig("pacs", "PACS", LOCAL, silent.getsockname()[1])
        assert "no DICOM answer" in echo(node, "TRRG", LimitsConfig(reply_timeout_s=0.5))


def test_a_host_without_a_name(tmp_path: Path) -> None:
    assert echo(NodeConfig("pacs", "PACS", "no-such-host.invalid", 104), "TRRG", LimitsConfig(reply_timeout_s=5)) != ""


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


@pytest.mark.parametrize("status", [None, 0x0000, 0x0001, 0xA7FF, 0xB006, 0xFFFF])
def test_every_status_means_something(status: int | None) -> None:
    assert judge(status).outcome in {"stored", "later", "refused"}


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
