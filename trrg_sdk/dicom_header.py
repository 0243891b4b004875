"""What a file says of its image, read without the pixels: enough to group, to choose and to refuse."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from trrg_sdk import dicom_tags as tags
from trrg_sdk.dicom import MAGIC, Radiograph, looks_like_dicom, view_position
from trrg_sdk.dicom_stream import read_elements
from trrg_sdk.errors import DicomError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_KEYWORDS = (
    "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality BodyPartExamined ViewPosition "
    "ViewCodeSequence PatientOrientation ImageType Rows Columns"
).split()
_DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory Storage: a DICOMDIR under any name


@dataclass(frozen=True, slots=True)
class Header:
    """The elements that decide what becomes of a file.

    Attributes:
        described: As ``trrg_sdk.dicom.load`` gives it, but with no pixels and without what stands in other elements.
        rows: (0028,0010), 0 when it is absent: then the object is no image.
        columns: (0028,0011).
        derived: Made from other images after the examination: Image Type (0008,0008) is DERIVED, SECONDARY. DERIVED
            alone is what many detectors call every processed image.
        directory: A DICOMDIR.
    """

    described: Radiograph = field(repr=False)
    rows: int
    columns: int
    derived: bool
    directory: bool


def read_header(stream: BinaryIO) -> Header:
    """Read a header.

    Args:
        stream: Of the file, at its beginning; seekable.

    Raises:
        DicomError: ``not_dicom``, ``corrupt`` or ``too_complex``.
    """
    mark = stream.read(132)
    stream.seek(0)
    is_part10 = mark[128:] == b"DICM"
    if not is_part10 and mark.startswith(tuple(MAGIC)):
        raise _not_dicom()
    with tags.quiet():
        try:
            dataset = read_elements(stream, tuple(_KEYWORDS))
            if is_part10 or looks_like_dicom(dataset):
                return _header(dataset)
        except DicomError:
            raise
        except Exception as error:  # a broken structure raises whatever the parser trips over
            if is_part10:
                raise DicomError(
                    f"the file's header is broken ({type(error).__name__}). Send it again.", code="corrupt"
                ) from error
    raise _not_dicom()


def _not_dicom() -> DicomError:
    return DicomError("a DICOM file was expected, something else came", code="not_dicom")


def _header(dataset: Dataset) -> Header:
    kinds = [str(value).strip().upper() for value in _values(dataset, "ImageType")]
    meta = getattr(dataset, "file_meta", None)
    stored_as = tags.uid(meta, "MediaStorageSOPClassUID") if meta is not None else ""
    described = Radiograph(
        pixels=np.empty((0, 0), dtype=np.float32),
        sop_instance_uid=tags.uid(dataset, "SOPInstanceUID"),
        study_instance_uid=tags.uid(dataset, "StudyInstanceUID"),
        series_instance_uid=tags.uid(dataset, "SeriesInstanceUID"),
        sop_class_uid=tags.uid(dataset, "SOPClassUID"),
        modality=tags.code(dataset, "Modality"),
        body_part=tags.code(dataset, "BodyPartExamined"),
        view_position=view_position(dataset),
    )
    return Header(
        described,
        rows=_size(dataset, "Rows"),
        columns=_size(dataset, "Columns"),
        derived=kinds[:2] == ["DERIVED", "SECONDARY"],
        directory=_DIRECTORY in (described.sop_class_uid, stored_as),
    )


def _size(dataset: Dataset, keyword: str) -> int:
    """Rows or Columns; 0 where there is no usable number: the reading of the pixels says what is wrong."""
    try:
        return tags.integer(dataset, keyword, default=0)
    except DicomError:
        return 0


def _values(dataset: Dataset, keyword: str) -> list[object]:
    try:
        value = tags.raw(dataset, keyword)
    except DicomError:
        return []
    return [] if value is None else [value] if isinstance(value, str) else list(value)
