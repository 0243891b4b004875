"""Peers that are down, refuse or misbehave, objects that cannot be sent: what is tried again, and what fails."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra site")

from tests.site.peers import LOCAL, dcmtk, free_port, listens, orthanc, started, until
from tests.site.sending import SR, Clock, courier_of, image, only, scp, site_of, structured_report
from trrg_sdk.errors import DicomError
from trrg_sdk.site.config import LimitsConfig, NodeConfig, QueueConfig
from trrg_sdk.site.send import echo, judge
from trrg_sdk.site.send_queue import SendQueue


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


def test_what_is_no_dicom_is_not_queued(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no DICOM")
    with pytest.raises(DicomError, match="cannot be read as a DICOM file"):
        courier_of(site_of(tmp_path, 104)).queue.enqueue(tmp_path / "x", "pacs")


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


@pytest.mark.parametrize("status", [None, 0x0000, 0x0001, 0xA7FF, 0xB006, 0xFFFF])
def test_every_status_means_something(status: int | None) -> None:
    assert judge(status).outcome in {"stored", "later", "refused"}
