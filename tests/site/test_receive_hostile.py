"""Peers that lie, flood, stall and break off: the receiver stays up, stays small, and keeps nothing of it."""

from __future__ import annotations

import random
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="needs the extra site")

from pynetdicom import AE, evt

from tests.sdk.chest_dicom import DX, chest_bytes, chest_dataset
from tests.site.peers import LOCAL, until
from tests.site.receiving import receiving
from trrg_sdk.dicom_tags import quiet
from trrg_sdk.errors import DicomError
from trrg_sdk.site.header import is_uid, read_header
from trrg_sdk.site.landing import Bounded, FloodError, Landing
from trrg_sdk.site.spool import Spool

EXPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
RELEASE = b"\5\0" + struct.pack(">L", 4) + bytes(4)


@contextmanager
def association(port: int, answers: list[int] | None = None) -> Iterator[Any]:
    """An association; the statuses of all answers go to a list."""

    def answered(event: Any) -> None:
        if answers is not None and "Status" in event.message.command_set:
            answers.append(event.message.command_set.Status)

    entity = AE("MODALITY")
    entity.add_requested_context(DX, EXPLICIT)
    entity.add_requested_context("1.2.840.10008.1.1")
    made = entity.associate(LOCAL, port, ae_title="TRRG", evt_handlers=[(evt.EVT_DIMSE_RECV, answered)])
    assert made.is_established
    try:
        yield made
    finally:
        made.abort()
        made.join(timeout=10)


def stays_up(port: int) -> bool:
    with association(port) as made:
        return bool(made.send_c_echo().Status == 0)


def fragment(data: bytes, *, command: bool, last: bool, context: int = 1) -> bytes:
    item = struct.pack(">LBB", len(data) + 2, context, command | last << 1) + data
    return b"\4\0" + struct.pack(">L", len(item)) + item


def store_command(sop_class: str = DX, instance: str = "2.25.1") -> bytes:
    from pynetdicom.dsutils import encode

    command = pydicom.Dataset()
    command.AffectedSOPClassUID, command.AffectedSOPInstanceUID = sop_class, instance
    command.CommandField, command.MessageID, command.Priority, command.CommandDataSetType = 1, 1, 0, 1
    encoded = encode(command, True, True)
    assert encoded
    return struct.pack("<HHLL", 0, 0, 4, len(encoded)) + encoded


def raw(made: Any, *pdus: bytes) -> None:
    for pdu in pdus:
        made.dul.socket.socket.sendall(pdu)


def nothing_kept(spool: Path) -> bool:
    return not [path for path in spool.rglob("*") if path.is_file() and path.name != ".lock"]


def closed(connection: socket.socket) -> bool:
    connection.settimeout(10)
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\1\0",
        b"\1\0" + struct.pack(">L", 4_000_000_000) + b"x",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\4\0" + struct.pack(">L", 6) + struct.pack(">LBB", 2, 1, 3),
    ],
    ids=["silent", "two bytes", "a PDU of 4 GB", "HTTP", "data before association"],
)
def test_a_connection_that_asks_for_nothing_is_closed(tmp_path: Path, sent: bytes) -> None:
    with receiving(tmp_path / "spool", {"network_timeout_s": 2.0}) as receiver:
        with socket.create_connection((LOCAL, receiver.port)) as connection:
            connection.sendall(sent)
            assert closed(connection)
        assert stays_up(receiver.port)


def test_a_unit_that_comes_in_drops_is_cut_off(tmp_path: Path) -> None:
    with receiving(tmp_path / "spool", {"network_timeout_s": 2.0}) as receiver:
        with socket.create_connection((LOCAL, receiver.port)) as connection, pytest.raises(OSError):
            connection.sendall(b"\1\0" + struct.pack(">L", 1000))
            for _ in range(200):
                connection.sendall(b"x")
                threading.Event().wait(0.1)
        assert stays_up(receiver.port)


def test_probes_of_the_port_take_no_place(tmp_path: Path) -> None:
    with receiving(tmp_path / "spool", {"associations": 1}) as receiver:
        for _ in range(10):
            socket.create_connection((LOCAL, receiver.port)).close()
        until(lambda: may_associate(receiver.port), seconds=9)


def may_associate(port: int) -> bool:
    entity = AE("MODALITY")
    entity.add_requested_context("1.2.840.10008.1.1")
    made = entity.associate(LOCAL, port, ae_title="TRRG")
    established = bool(made.is_established)
    if established:
        made.release()
    return established


@pytest.mark.parametrize(
    ("elements", "status"),
    [
        ({"SOPInstanceUID": "../../../x"}, 0x0117),
        ({"SOPInstanceUID": "2.25.00012"}, 0x0117),
        ({"StudyInstanceUID": "../../../x"}, 0xC000),
        ({"StudyInstanceUID": "1..2"}, 0xC000),
        ({"StudyInstanceUID": None}, 0xC000),
        ({"StudyInstanceUID": ["2.25.1", "2.25.2"]}, 0xC000),
    ],
)
def test_uids_that_are_none(tmp_path: Path, elements: dict[str, Any], status: int) -> None:
    with receiving(tmp_path / "spool") as receiver, quiet():
        dataset = chest_dataset(**{"SeriesInstanceUID": "2.25.5"} | elements)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        with association(receiver.port) as made:
            assert made.send_c_store(dataset).Status == status
            assert made.send_c_store(chest_dataset()).Status == 0, "the association goes on"
    names = {path.name for path in tmp_path.rglob("*")}
    assert "x" not in names


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (store_command(instance="2.25.9"), 0xA900),
        (store_command(sop_class="1.2.840.10008.5.1.4.1.1.1"), 0x0122),
    ],
)
def test_a_request_that_does_not_match_its_data(tmp_path: Path, command: bytes, status: int) -> None:
    data = chest_bytes(uid="2.25.1")
    start = 128 + 4 + 12 + pydicom.dcmread(BytesIO(data)).file_meta.FileMetaInformationGroupLength
    answers: list[int] = []
    with receiving(tmp_path / "spool") as receiver, association(receiver.port, answers) as made:
        raw(made, fragment(command, command=True, last=True))
        for position in range(start, len(data), 60_000):
            piece = data[position : position + 60_000]
            raw(made, fragment(piece, command=False, last=position + 60_000 >= len(data)))
        until(lambda: answers)
        assert answers == [status]
        assert nothing_kept(tmp_path / "spool")


def test_an_object_over_the_limit_is_refused_and_the_next_one_taken(tmp_path: Path) -> None:
    with receiving(tmp_path / "spool", {"object_mib": 1}) as receiver, association(receiver.port) as made:
        large = chest_dataset()
        large.PixelData = bytes(1_500_000)
        assert made.send_c_store(large).Status == 0xA700
        assert nothing_kept(tmp_path / "spool")
        assert made.send_c_store(chest_dataset()).Status == 0


def test_an_object_without_end_ends_the_association(tmp_path: Path) -> None:
    piece = fragment(bytes(100_000), command=False, last=False)
    with receiving(tmp_path / "spool", {"object_mib": 1}) as receiver:
        with association(receiver.port) as made, pytest.raises((OSError, AttributeError)):  # the socket is gone
            raw(made, fragment(store_command(), command=True, last=True))
            for _ in range(1000):
                raw(made, piece)
                threading.Event().wait(0.005)
        until(lambda: nothing_kept(tmp_path / "spool"))
        assert stays_up(receiver.port)


@pytest.mark.parametrize(
    "pdus",
    [
        (fragment(b"x" * 40_000, command=True, last=False),) * 3,
        (fragment(b"nonsense", command=True, last=True),),
        (fragment(store_command(), command=True, last=True, context=77), fragment(b"x", command=False, last=True)),
        (b"\4\0" + struct.pack(">LL", 4, 0),),
        (b"\4\0" + struct.pack(">L", 4_000_000_000),),
        (b"\x99" * 200,),
    ],
    ids=["endless command", "no command", "unknown context", "empty", "4 GB", "no PDU"],
)
def test_what_is_no_message_ends_the_association(tmp_path: Path, pdus: tuple[bytes, ...]) -> None:
    with receiving(tmp_path / "spool", {"network_timeout_s": 2.0}) as receiver:
        with association(receiver.port) as made:
            raw(made, *pdus)
            until(lambda: not made.is_established)
        assert nothing_kept(tmp_path / "spool")
        assert stays_up(receiver.port)


def test_a_peer_that_breaks_off_amid_an_object_leaves_nothing(tmp_path: Path) -> None:
    with receiving(tmp_path / "spool") as receiver:
        with association(receiver.port) as made:
            raw(
                made,
                fragment(store_command(), command=True, last=True),
                fragment(b"x" * 999, command=False, last=False),
            )
            until(lambda: list((tmp_path / "spool" / "incoming").iterdir()))
        until(lambda: nothing_kept(tmp_path / "spool"))
        assert stays_up(receiver.port)


def test_a_peer_that_stalls_amid_an_object_is_cut_off(tmp_path: Path) -> None:
    with receiving(tmp_path / "spool", {"network_timeout_s": 2.0}) as receiver, association(receiver.port) as made:
        raw(made, fragment(store_command(), command=True, last=True))
        raw(made, fragment(b"x" * 999, command=False, last=False))
        until(lambda: not made.is_established)
        until(lambda: nothing_kept(tmp_path / "spool"))


def test_random_damage(tmp_path: Path) -> None:
    rng, data = random.Random(6), chest_bytes()
    message = fragment(store_command(), command=True, last=True) + fragment(data[300:2300], command=False, last=True)
    with receiving(tmp_path / "spool", {"network_timeout_s": 2.0}) as receiver:
        for _ in range(25):
            damaged = bytearray(message)
            for _ in range(rng.randint(1, 8)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            with association(receiver.port) as made:
                raw(made, bytes(damaged[: rng.randint(8, len(damaged))]))
        until(lambda: nothing_kept(tmp_path / "spool"))
        assert stays_up(receiver.port)


def data_set_file(folder: Path, content: bytes) -> Path:
    (folder / "data").write_bytes(content)
    return folder / "data"


def test_a_deflate_bomb_is_not_inflated(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(64)) + packer.flush()
    header = read_header(data_set_file(tmp_path, bomb), 0, DEFLATED)
    assert header.study_instance_uid == ""


def test_sequences_without_bottom(tmp_path: Path) -> None:
    deep = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 50_000
    with pytest.raises(DicomError, match="cannot be read"):
        read_header(data_set_file(tmp_path, deep), 0, EXPLICIT)


@pytest.mark.parametrize("text", ["1.2.3", "2.25.0", "1.0.3"])
def test_uids(text: str) -> None:
    assert is_uid(text)


@pytest.mark.parametrize("text", ["", "1", "1.", ".1", "1.02", "1.2.a", "1.2/3", "1.2\n", "9." + "1" * 63])
def test_no_uids(text: str) -> None:
    assert not is_uid(text)


def test_a_landing_takes_no_longer_than_it_may(tmp_path: Path) -> None:
    spool = Spool(tmp_path, study_timeout_s=1)
    landing = Landing(spool, b"head", max_bytes=10, max_seconds=-1)
    with pytest.raises(FloodError):
        landing.write(b"x")
    landing.discard()
    assert not list(spool.incoming.iterdir())
    spool.close()


def test_a_part_in_memory_is_bounded() -> None:
    part = Bounded(4)
    part.write(b"1234")
    with pytest.raises(FloodError):
        part.write(b"5")
