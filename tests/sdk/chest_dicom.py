"""Chest radiographs for tests, drawn with ellipses: bright body, dark lungs, dark air around, and soft edges.

With hard edges they are about as far from the training films as the gate of the embedded bundle takes.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

DX = "1.2.840.10008.5.1.4.1.1.1.1"
MARK = "ZZMARKZZ"
"""Stands in every element that identifies the patient: it must never come out again."""


def chest_pixels(*, rows: int = 256, columns: int = 220) -> NDArray[np.uint16]:
    """uint16 (rows, columns), 12 bit, larger is brighter."""
    y, x = np.mgrid[0:rows, 0:columns]
    noise = np.random.default_rng(5).integers(0, 60, (rows, columns))

    def inside(row: float, column: float, height: float, width: float) -> NDArray[np.bool_]:
        return ((y / rows - row) / height) ** 2 + ((x / columns - column) / width) ** 2 < 1

    image = np.full((rows, columns), 200)
    image[inside(0.62, 0.5, 0.6, 0.46)] = 2400
    image[inside(0.42, 0.29, 0.3, 0.16) | inside(0.42, 0.71, 0.3, 0.16)] = 900
    image[inside(0.55, 0.55, 0.17, 0.17)] = 2900
    image[(np.abs(x / columns - 0.5) < 0.04) & (y / rows > 0.05)] = 3300
    return (_softened(image) + noise).astype(np.uint16)


def _softened(image: NDArray[np.int_], reach: int = 3) -> NDArray[np.float64]:
    """Means over squares of 7 x 7 pixels."""
    wide = np.pad(image.astype(float), reach, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (2 * reach + 1, 2 * reach + 1))
    means: NDArray[np.float64] = windows.mean(axis=(2, 3))
    return means


def chest_dataset(*, uid: str = "2.25.1001", study: str = "2.25.1", **elements: Any) -> Dataset:
    """A DX object with a marked patient; ``elements`` replaces or, where None, removes some."""
    pixels = chest_pixels()
    values = {
        "SOPClassUID": DX,
        "SOPInstanceUID": uid,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": study + ".1",
        "PatientName": f"{MARK}^{MARK}",
        "PatientID": MARK,
        "AccessionNumber": MARK,
        "InstitutionName": MARK,
        "PatientBirthDate": "19010203",
        "StudyDate": "19990807",
        "PatientAge": "055Y",
        "Modality": "DX",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelSpacing": [1.4, 1.4],
        "PixelData": pixels.tobytes(),
        **elements,
    }
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = DX
    dataset.file_meta.MediaStorageSOPInstanceUID = uid
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


def chest_bytes(**elements: Any) -> bytes:
    """The same as a DICOM file."""
    stream = io.BytesIO()
    chest_dataset(**elements).save_as(stream, enforce_file_format=True)
    return stream.getvalue()
