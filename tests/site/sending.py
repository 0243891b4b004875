"""What goes out in tests of sending: a site, its courier, objects, and a peer that answers with one status."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom

from tests.sdk.chest_dicom import chest_bytes
from tests.site.peers import LOCAL, free_port
from trrg_sdk.site.config import LimitsConfig, NodeConfig, OutputsConfig, ReceiveConfig, SiteConfig
from trrg_sdk.site.courier import Courier
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
