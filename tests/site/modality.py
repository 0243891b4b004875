"""A modality: the objects that it makes and sends with dcmtk's storescu, and what of them a spool holds."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pydicom

from tests.sdk.chest_dicom import chest_bytes
from tests.site.peers import LOCAL, dcmtk, run


def send(
    receiver_port: int, *files: Path, aet: str = "TRRG", options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return run(dcmtk("storescu"), "-aec", aet, *options, LOCAL, receiver_port, *files)


def files_of(spool: Path, part: str = "ready") -> list[Path]:
    return sorted((spool / part).rglob("*.dcm"))


def made(folder: Path, name: str, **elements: Any) -> Path:
    path = folder / name
    path.write_bytes(chest_bytes(**elements))
    return path


def data_set(path: Path) -> bytes:
    """The bytes behind the file meta information."""
    meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
    return path.read_bytes()[128 + 4 + 12 + meta.FileMetaInformationGroupLength :]
