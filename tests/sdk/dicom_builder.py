"""Small DICOM images built in memory, for the tests of reading them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, generate_uid

IMPLICIT, EXPLICIT, DEFLATED, BIG = (f"1.2.840.10008.1.2{tail}" for tail in ("", ".1", ".1.99", ".2"))
SECRET = "ZEBRA^QUAGGA"


def image(rows: int = 48, columns: int = 40, *, low: int = 0, high: int = 4095, seed: int = 0) -> NDArray[np.int64]:
    values = np.random.default_rng(seed).integers(low, high + 1, (rows, columns))
    values[0, :2] = low, high
    return values


def build(values: NDArray[Any], *, syntax: str = EXPLICIT, dtype: str = "u2", bits: int = 12, **tags: Any) -> Dataset:
    """A small CR image; a tag given as None is left out."""
    order = ">" if syntax == BIG else "<"
    stored = values.astype(order + dtype)
    elements: dict[str, Any] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1",
        "SOPInstanceUID": generate_uid(entropy_srcs=["image"]),
        "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=["series"]),
        "PatientName": SECRET,
        "PatientID": SECRET,
        "Modality": "CR",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": values.shape[0],
        "Columns": values.shape[1],
        "BitsAllocated": stored.dtype.itemsize * 8,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
    }
    dataset = Dataset()
    for keyword, value in (elements | tags).items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.add_new("PixelData", "OW" if stored.dtype.itemsize > 1 else "OB", stored.tobytes())
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1")
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["image"])
    return dataset


def to_bytes(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def table(first: int, entries: list[int], bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return Sequence([item])


def jpeg() -> Dataset:
    from PIL import Image

    buffer = io.BytesIO()
    ramp = np.add.outer(np.arange(64), 2 * np.arange(64)).astype(np.uint8)
    Image.fromarray(ramp).save(buffer, "JPEG", quality=95)
    dataset = build(ramp, dtype="u1", bits=8, syntax="1.2.840.10008.1.2.4.50")
    dataset.PixelData = encapsulate([buffer.getvalue()])
    return dataset


WINDOW: dict[str, Any] = {"WindowCenter": "1800", "WindowWidth": "2500"}
CHAINS: dict[str, dict[str, Any]] = {
    "linear window": WINDOW,
    "exact window": WINDOW | {"VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": WINDOW | {"VOILUTFunction": "SIGMOID"},
    "MONOCHROME1 is inverted after the window": WINDOW | {"PhotometricInterpretation": "MONOCHROME1"},
    "INVERSE does not invert twice": WINDOW
    | {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
    "rescale": {"RescaleSlope": "0.5", "RescaleIntercept": "-1024", "WindowCenter": "-100", "WindowWidth": "900"},
    "VOI LUT before window": WINDOW | {"VOILUTSequence": table(500, [i * i // 10000 for i in range(3000)], 10)},
    "VOI LUT and MONOCHROME1": {
        "VOILUTSequence": table(0, [i // 16 for i in range(4096)], 8),
        "PhotometricInterpretation": "MONOCHROME1",
    },
    "modality LUT": WINDOW | {"ModalityLUTSequence": table(100, [4095 - i for i in range(3500)], 12)},
}
