"""The Storage SCP against dcmtk: what arrives is what was sent, studies are whole, and what is refused."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from pathlib import Path

import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="needs the extra site")

from tests.site.modality import data_set, files_of, made, send
from tests.site.peers import LOCAL, dcmtk, run, until
from tests.site.receiving import receiving
from trrg_sdk.dicom_tags import quiet
from trrg_sdk.errors import UsageError
from trrg_sdk.site.config import LimitsConfig, ReceiveConfig
from trrg_sdk.site.receive import Receiver
from trrg_sdk.site.spool import hashed


def test_a_study_arrives_as_it_was_sent(tmp_path: Path) -> None:
    files = [made(tmp_path, f"{n}.dcm", uid=f"2.25.10{n}", study="2.25.7") for n in range(3)]
    other = made(tmp_path, "other.dcm", uid="2.25.200", study="2.25.8")
    with receiving(tmp_path / "spool") as receiver:
        assert run(dcmtk("echoscu"), "-aec", "TRRG", LOCAL, receiver.port).returncode == 0
        assert send(receiver.port, *files, other).returncode == 0
        until(lambda: len(files_of(tmp_path / "spool")) == 4)
    ready = tmp_path / "spool" / "ready"
    assert {folder.name for folder in ready.iterdir()} == {hashed("2.25.7"), hashed("2.25.8")}
    for number, source in enumerate(files):
        arrived = ready / hashed("2.25.7") / f"{hashed(f'2.25.10{number}')}.dcm"
        assert data_set(arrived) == data_set(source)
        assert arrived.stat().st_mode & 0o077 == 0
    assert not files_of(tmp_path / "spool", "open")
    assert list((tmp_path / "spool" / "incoming").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("pydicom__6154", "-xe"),
        ("pydicom__chrJapMulti.dcm", "-xe"),
        ("pydicom__image_dfl.dcm", "-xd"),
        ("pydicom-data__RG1_J2KI.dcm", "-xw"),
        ("pydicom-data__RG3_J2KR.dcm", "-xv"),
        ("pydicom-data__JPEG-LL.dcm", "-xs"),
        ("pydicom__JPGExtended.dcm", "-xx"),
        ("torchxrayvision__Fake_MONOHR1.dcm", "-xy"),
    ],
)
def test_real_objects_are_kept_in_their_transfer_syntax(
    shared_data: Path, tmp_path: Path, name: str, option: str
) -> None:
    source = shared_data / "dicom" / name
    with receiving(tmp_path / "spool") as receiver:
        done = send(receiver.port, source, options=(option,))
        assert done.returncode == 0, done.stdout + done.stderr
        (arrived,) = until(lambda: files_of(tmp_path / "spool"))
    with quiet():
        sent, kept = pydicom.dcmread(source), pydicom.dcmread(arrived)
        assert kept.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
        assert without_group_lengths(kept) == without_group_lengths(sent)  # dcmtk writes its own


def without_group_lengths(dataset: pydicom.Dataset) -> list[pydicom.DataElement]:
    return [element for element in dataset if element.tag.element]


def test_an_object_of_no_study_is_refused(shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = shared_data / "dicom" / "pydicom-data__JLSL_08_07_0_1F.dcm"
    with receiving(tmp_path / "spool") as receiver:
        assert send(receiver.port, source, options=("-xt",)).returncode != 0
    assert "status C000: it has no valid Study Instance UID" in caplog.text


def test_a_study_waits_for_its_association_and_for_quiet(tmp_path: Path) -> None:
    from pynetdicom import AE

    first, second = (made(tmp_path, f"{n}.dcm", uid=f"2.25.30{n}", study="2.25.9") for n in range(2))
    entity = AE("MODALITY")
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.1.2.1")
    with receiving(tmp_path / "spool", study_timeout_s=0.3) as receiver:
        association = entity.associate(LOCAL, receiver.port, ae_title="TRRG")
        assert association.send_c_store(first).Status == 0
        assert receiver.spool.complete() == []
        until(lambda: files_of(tmp_path / "spool", "open"))
        threading.Event().wait(1.2)
        assert not files_of(tmp_path / "spool"), "handed over while its association was open"
        assert association.send_c_store(second).Status == 0
        association.release()
        until(lambda: len(files_of(tmp_path / "spool")) == 2)
        assert len(list((tmp_path / "spool" / "ready").iterdir())) == 1


def test_the_same_object_again_changes_nothing_and_a_new_one_comes_as_a_folder_more(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    source = made(tmp_path, "a.dcm", uid="2.25.400", study="2.25.4")
    with receiving(spool) as receiver:
        for _ in range(2):
            assert send(receiver.port, source, source).returncode == 0
            until(lambda: files_of(spool) and not files_of(spool, "open"))
        assert len(files_of(spool)) == 1
        assert send(receiver.port, made(tmp_path, "b.dcm", uid="2.25.401", study="2.25.4")).returncode == 0
        until(lambda: len(files_of(spool)) == 2)
    assert {folder.name for folder in (spool / "ready").iterdir()} == {hashed("2.25.4"), f"{hashed('2.25.4')}.2"}


def test_an_object_that_was_corrected_replaces_the_first(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with receiving(spool) as receiver:
        send(
            receiver.port,
            made(tmp_path, "a.dcm", uid="2.25.500"),
            made(tmp_path, "b.dcm", uid="2.25.500", PatientAge="056Y"),
        )
        (arrived,) = until(lambda: files_of(spool))
    assert pydicom.dcmread(arrived).PatientAge == "056Y"


def test_who_may_call(tmp_path: Path) -> None:
    source = made(tmp_path, "a.dcm")
    with receiving(tmp_path / "spool", calling_aets=("MODALITY",)) as receiver:
        assert (
            "Called AE Title Not Recognized"
            in send(receiver.port, source, aet="OTHER", options=("-aet", "MODALITY")).stderr
        )
        assert "Calling AE Title Not Recognized" in send(receiver.port, source, options=("-aet", "STRANGER")).stderr
        assert send(receiver.port, source, options=("-aet", "MODALITY")).returncode == 0
        until(lambda: files_of(tmp_path / "spool"))


def test_who_may_connect(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = made(tmp_path, "a.dcm")
    with receiving(tmp_path / "spool", peers=("192.0.2.0/24",)) as receiver:
        assert send(receiver.port, source).returncode != 0
        assert "it is not among the peers" in caplog.text
    with receiving(tmp_path / "spool", peers=("192.0.2.0/24", "127.0.0.1")) as receiver:
        assert send(receiver.port, source).returncode == 0
    assert not (tmp_path / "spool" / "incoming" / "x").exists()


def test_one_association_too_many_is_rejected_for_now(tmp_path: Path) -> None:
    from pynetdicom import AE

    entity = AE("MODALITY")
    entity.add_requested_context("1.2.840.10008.1.1")
    with receiving(tmp_path / "spool", {"associations": 1}) as receiver:
        association = entity.associate(LOCAL, receiver.port, ae_title="TRRG")
        assert association.is_established
        refused = send(receiver.port, made(tmp_path, "a.dcm"))
        assert "Rejected Transient" in refused.stderr
        association.release()
        until(lambda: send(receiver.port, tmp_path / "a.dcm").returncode == 0)


def test_a_sop_class_that_is_no_radiograph_is_refused_in_the_negotiation(tmp_path: Path) -> None:
    source = made(tmp_path, "ct.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    dataset = pydicom.dcmread(source)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.save_as(source)
    with receiving(tmp_path / "spool") as receiver:
        done = send(receiver.port, source)
    assert done.returncode != 0
    assert "No presentation context" in done.stdout + done.stderr or "No Acceptable" in done.stdout + done.stderr


def test_a_full_disk_is_said_to_the_peer(tmp_path: Path) -> None:
    with receiving(tmp_path / "spool", {"free_mib": 10**9}) as receiver:
        done = send(receiver.port, made(tmp_path, "a.dcm"), options=("-v",))
        assert "Refused: OutOfResources" in done.stderr
        assert list((tmp_path / "spool" / "incoming").iterdir()) == []
    assert not files_of(tmp_path / "spool", "")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_disk_that_fails_is_said_to_the_peer_and_the_next_object_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    spool, source = tmp_path / "spool", made(tmp_path, "a.dcm")
    with receiving(spool) as receiver:
        with monkeypatch.context() as broken:
            broken.setattr(os, failing, fail)
            assert "Refused: OutOfResources" in send(receiver.port, source, options=("-v",)).stderr
        assert list((spool / "incoming").iterdir()) == []
        assert not files_of(spool, "")
        assert send(receiver.port, source).returncode == 0
        until(lambda: files_of(spool))


def test_old_studies_are_deleted_when_the_site_says_so(tmp_path: Path) -> None:
    ready = tmp_path / "spool" / "ready"
    for name, age in (("old", 3 * 86_400), ("new", 3_600)):
        (ready / name).mkdir(parents=True)
        (ready / name / "a.dcm").write_bytes(b"x")
        os.utime(ready / name, (time.time() - age,) * 2)
    with receiving(tmp_path / "spool"):
        threading.Event().wait(0.7)
        assert len(list(ready.iterdir())) == 2
    with receiving(tmp_path / "spool", keep_days=2.0):
        until(lambda: [folder.name for folder in ready.iterdir()] == ["new"])
        until(lambda: not list((tmp_path / "spool" / "incoming").iterdir()))


def test_what_a_kill_left_behind_is_tidied(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    for folder in ("incoming/x.old", "open/empty", "open/full", "ready"):
        (spool / folder).mkdir(parents=True)
    (spool / "incoming" / "half.part").write_bytes(b"x")
    (spool / "incoming" / "x.old" / "a.dcm").write_bytes(b"x")
    (spool / "open" / "full" / "a.dcm").write_bytes(b"x")
    with receiving(spool, study_timeout_s=0.1):
        until(lambda: (spool / "ready" / "full" / "a.dcm").exists())
    assert [path.name for path in (spool / "ready").iterdir()] == ["full"]
    assert not list((spool / "incoming").iterdir())


def test_ipv6(tmp_path: Path) -> None:
    from pynetdicom import AE

    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 here")
    entity = AE("MODALITY")
    entity.add_requested_context("1.2.840.10008.1.1")
    with receiving(tmp_path / "spool", bind="::1", peers=("::1",)) as receiver:
        association = entity.associate("::1", receiver.port, ae_title="TRRG")
        assert association.send_c_echo().Status == 0
        association.release()


def test_two_receivers_do_not_share_a_spool(tmp_path: Path) -> None:
    with receiving(tmp_path / "spool"), pytest.raises(UsageError, match="another process receives into"):
        Receiver(ReceiveConfig(spool=tmp_path / "spool"), LimitsConfig())


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with receiving(tmp_path / "one") as receiver:
        second = Receiver(ReceiveConfig(spool=tmp_path / "two", port=receiver.port), LimitsConfig())
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1 port {receiver.port}"):
            second.start()
