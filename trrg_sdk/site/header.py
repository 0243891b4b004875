"""What must be known of a received object before it can be filed: its UIDs, read from the start of its data set."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from trrg_sdk import dicom_tags as tags
from trrg_sdk.errors import DicomError

_PREFIX_BYTES = 4 * 2**20
"""The UIDs stand in groups 0008 and 0020, before anything large; so much is read, and no more is inflated."""
_STUDY_UID = 0x0020000D
_WANTED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID")
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")  # PS3.5 9.1: no part starts with 0 unless it is 0


@dataclass(frozen=True)
class Header:
    """The UIDs of an object, "" where one is absent or malformed.

    Attributes:
        sop_class_uid: (0008,0016).
        sop_instance_uid: (0008,0018).
        study_instance_uid: (0020,000D).
    """

    sop_class_uid: str
    sop_instance_uid: str = field(repr=False)
    study_instance_uid: str = field(repr=False)


def is_uid(text: str) -> bool:
    """True for a UID after PS3.5 9.1."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def read_header(path: Path, offset: int, syntax: str) -> Header:
    """Read the UIDs of a data set.

    Args:
        path: A file.
        offset: Where the data set starts in it.
        syntax: Its Transfer Syntax UID.

    Raises:
        DicomError: The start of the data set cannot be read (code ``corrupt``).
    """
    with path.open("rb") as stream:
        stream.seek(offset)
        start = stream.read(_PREFIX_BYTES)
    try:
        with tags.quiet():
            dataset = _parse(start, syntax)
            return Header(*(_plain_uid(dataset, keyword) for keyword in _WANTED))
    except Exception as error:  # whatever pydicom's parser raises on hostile bytes
        raise DicomError("the start of the data set cannot be read", code="corrupt") from error


def _parse(start: bytes, syntax: str) -> Any:
    from pydicom.filereader import read_dataset
    from pydicom.tag import Tag
    from pydicom.uid import UID

    uid = UID(syntax)
    if uid.is_deflated:
        start = zlib.decompressobj(-zlib.MAX_WBITS).decompress(start, _PREFIX_BYTES)
    return read_dataset(
        BytesIO(start),
        is_implicit_VR=uid.is_implicit_VR,
        is_little_endian=uid.is_little_endian,
        stop_when=lambda tag, _vr, _length: tag > _STUDY_UID,
        specific_tags=[Tag(keyword) for keyword in _WANTED],
    )


def _plain_uid(dataset: Any, keyword: str) -> str:
    text = tags.uid(dataset, keyword)
    return text if is_uid(text) else ""
