"""Pixel Data to stored values: checked before a decoder sees it, and every decoder's failure translated.

Compressed frames go to ``pylibjpeg`` and its plug-ins only, whatever else is installed: the same file gives the
same pixels on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trrg_sdk import dicom_tags as tags
from trrg_sdk.codestream import frame_size, is_complete
from trrg_sdk.errors import DicomError
from trrg_sdk.pixels import unpack

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

_MAX_PIXELS = 100_000_000  # a 43 cm detector at 50 um has 74 million
_MAX_RATIO = 2_000  # pixels per compressed byte; a film has 1 to 30
_RLE = "1.2.840.10008.1.2.5"
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
_ELEMENTS = (
    "PixelData",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "NumberOfFrames",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)


def stored_values(dataset: Dataset) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Decode the one grey frame of a dataset.

    Args:
        dataset: It is not changed.

    Returns:
        Integers (H, W), and what had to be assumed.

    Raises:
        DicomError: With a code of ``trrg_sdk.dicom``.
    """
    _require_image(dataset)
    rows, columns = _require_one_grey_frame(dataset)
    syntax, notes = _transfer_syntax(dataset)
    if syntax in _NATIVE:
        _check_native(dataset, rows, columns)
    else:
        _check_compressed(dataset, syntax, rows, columns)
    stored = _decode(dataset, syntax)
    if stored.shape != (rows, columns) or stored.dtype.kind not in "ui":
        raise DicomError(
            f"{rows} x {columns} grey values were expected, the decoder gave {stored.shape}. Export the image again.",
            code="bad_size",
        )
    return (unpack(stored, dataset) if syntax in _NATIVE else stored), notes


def _require_image(dataset: Dataset) -> None:
    """Refuse an object without Pixel Data, and say what it is instead."""
    if tags.raw(dataset, "PixelData") is not None:
        return
    if tags.raw(dataset, "Rows") is not None:
        raise DicomError(
            f"the header describes an image, but {tags.label('PixelData')} is not there: the file is cut off or only "
            "its header was sent. Send it again.",
            code="no_pixels",
        )
    raise DicomError(
        f"this object ({_sop_class_name(dataset)}) holds no image; send the chest radiograph itself", code="no_pixels"
    )


def _sop_class_name(dataset: Dataset) -> str:
    """The standard's name of the SOP class."""
    from pydicom.uid import UID

    uid = UID(tags.uid(dataset, "SOPClassUID"))
    return uid.name if uid.type == "SOP Class" else "SOP class unknown"


def _require_one_grey_frame(dataset: Dataset) -> tuple[int, int]:
    """Rows and columns of the one grey frame that must be there."""
    rows = tags.integer(dataset, "Rows", low=1)
    columns = tags.integer(dataset, "Columns", low=1)
    photometric = tags.code(dataset, "PhotometricInterpretation")
    if not photometric:
        raise tags.missing("PhotometricInterpretation")
    frames = tags.integer(dataset, "NumberOfFrames", default=1, low=0, high=2**31)
    if frames > 1:
        raise DicomError(
            f"one frame was expected, this file ({_sop_class_name(dataset)}) holds {frames}; send a single radiograph",
            code="multi_frame",
        )
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or tags.integer(dataset, "SamplesPerPixel", default=1) != 1:
        raise DicomError(
            f"a grey image (MONOCHROME1 or MONOCHROME2) was expected, {photometric} ({_sop_class_name(dataset)}) came; "
            "send the original radiograph, no screen copy",
            code="colour",
        )
    if tags.integer(dataset, "BitsAllocated") not in (1, 8, 16, 32):
        raise tags.bad_value("BitsAllocated", "8, 16 or 32")
    tags.integer(dataset, "BitsStored", low=1, high=32)
    tags.integer(dataset, "PixelRepresentation", high=1)
    if rows * columns > _MAX_PIXELS:
        raise DicomError(
            f"{tags.label('Rows')} and Columns claim {rows} x {columns} pixels, more than any detector has. Export the "
            "image again.",
            code="bad_size",
        )
    return rows, columns


def _transfer_syntax(dataset: Dataset) -> tuple[str, tuple[str, ...]]:
    """The transfer syntax; guessed from how the elements were encoded when the file meta is missing."""
    meta = getattr(dataset, "file_meta", None)
    syntax = tags.uid(meta, "TransferSyntaxUID") if meta is not None else ""
    if syntax:
        return syntax, ()
    if dataset["PixelData"].is_undefined_length:
        raise DicomError(
            f"the pixels are compressed and {tags.label('TransferSyntaxUID')} is missing, so the codec is unknown. "
            "Export the image again with its file meta.",
            code="undecodable",
        )
    implicit, little = getattr(dataset, "original_encoding", (None, None))
    guess = _NATIVE[0] if implicit else _NATIVE[3] if little is False else _NATIVE[1]
    return guess, ("no transfer syntax in the file: taken from how its elements are encoded",)


def _check_native(dataset: Dataset, rows: int, columns: int) -> None:
    """The uncompressed pixels must all be there."""
    bits = tags.integer(dataset, "BitsAllocated")
    expected, found = (rows * columns * bits + 7) // 8, len(dataset.PixelData)
    if found >= expected:
        return
    if found * 100 < expected:
        raise DicomError(
            f"{rows} x {columns} pixels need {expected} bytes and {found} are there: the sizes are wrong or nearly all "
            "is missing. Export the image again.",
            code="bad_size",
        )
    raise DicomError(
        f"the file is cut off: {rows} x {columns} pixels need {expected} bytes and {found} are there. Send it again.",
        code="truncated",
    )


def _check_compressed(dataset: Dataset, syntax: str, rows: int, columns: int) -> None:
    """The frame must be whole and of the size that the header claims, before anything of that size is allocated."""
    from pydicom.encaps import generate_frames

    try:
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    except Exception as error:  # pydicom raises several kinds for items that are cut off
        raise DicomError(
            f"the compressed pixels are cut off or broken ({type(error).__name__}). Send the file again.",
            code="truncated",
        ) from error
    if rows * columns > _MAX_RATIO * len(frame):
        raise DicomError(
            f"{rows} x {columns} pixels cannot come from {len(frame)} compressed bytes. Send the file again.",
            code="bad_size",
        )
    size = frame_size(frame)
    if syntax != _RLE and size is not None and not is_complete(frame):
        raise DicomError(
            f"the compressed frame ({_codec(syntax)}) has no end mark: the file is cut off. Send it again.",
            code="truncated",
        )
    if size is not None and size != (rows, columns):
        raise DicomError(
            f"Rows and Columns say {rows} x {columns}, the compressed frame is {size[0]} x {size[1]}. Export it again.",
            code="bad_size",
        )


def _decode(dataset: Dataset, syntax: str) -> NDArray[Any]:
    """Run the decoder on the pixel elements alone."""
    from pydicom.dataset import Dataset as Plain
    from pydicom.dataset import FileMetaDataset
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    plain = Plain()
    plain.file_meta = FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = UID(syntax)
    plugin = "" if syntax in _NATIVE else "pylibjpeg"
    try:
        for keyword in _ELEMENTS:
            if keyword in dataset:
                plain[keyword] = dataset[keyword]
        plain.SamplesPerPixel = 1
        stored, _ = get_decoder(UID(syntax)).as_array(plain, raw=True, decoding_plugin=plugin)
    except MemoryError as error:
        raise DicomError("this machine has too little memory for the image", code="bad_size") from error
    except BaseException as error:  # every plug-in has its own exceptions, and a Rust one panics past Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DicomError(
            f"the pixels cannot be decoded: transfer syntax {_codec(syntax)}, {type(error).__name__}. Export the image "
            "uncompressed, as JPEG lossless or as JPEG 2000.",
            code="undecodable",
        ) from error
    return np.asarray(stored)


def _codec(syntax: str) -> str:
    """The transfer syntax by its name in the standard, and its UID."""
    from pydicom.uid import UID

    uid: UID = UID(syntax)
    return f"{uid.name} ({uid})" if uid.name != str(uid) else f"{uid}, which this SDK does not know"
