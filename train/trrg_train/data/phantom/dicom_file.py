"""A phantom study as a DICOM file: a digital X-ray image for presentation (PS3.3 A.26), explicit VR little endian."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from trrg_train.data.phantom.study import PhantomStudy

if TYPE_CHECKING:
    from pydicom import Dataset

STORAGE = {"PA": ("1.2.840.10008.5.1.4.1.1.1.1", "DX"), "AP": ("1.2.840.10008.5.1.4.1.1.1", "CR")}
"""SOP class and modality: standing films come from a DX room, bedside films from CR plates."""


def uid(*key: object) -> str:
    """Return a UID that belongs to a key: 2.25. and 128 bits of a hash, as PS3.5 B.2 allows."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def write_dicom(study: PhantomStudy, path: Path) -> None:
    """Write a study to a file; equal studies give equal bytes."""
    to_dataset(study).save_as(path, enforce_file_format=True)


def to_dataset(study: PhantomStudy) -> Dataset:
    """Return the study as a complete data set with file meta information."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    sop_class, modality = STORAGE[study.view]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = UID(uid("phantom", study.seed, study.index, "instance"))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(uid("trrg", "phantom"))
    meta.ImplementationVersionName = "TRRG_PHANTOM"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = modality
    _describe_patient(dataset, study)
    _describe_image(dataset, study)
    _add_pixels(dataset, study)
    return dataset


def _describe_patient(dataset: Dataset, study: PhantomStudy) -> None:
    """Add patient, study and series: plainly made up, with empty values where a real one would be private."""
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = f"PHANTOM^{study.patient:04d}"
    dataset.PatientID = f"PHANTOM-{study.seed}-{study.patient:04d}"
    dataset.PatientBirthDate = ""
    dataset.PatientSex = study.sex
    dataset.PatientAge = f"{study.age_years:03d}Y"
    dataset.StudyInstanceUID = uid("phantom", study.seed, study.index, "study")
    dataset.SeriesInstanceUID = uid("phantom", study.seed, study.index, "series")
    dataset.StudyID = str(study.index)
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = 1
    for keyword in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "Laterality"):
        setattr(dataset, keyword, "")
    dataset.Manufacturer = "TRRG phantom"
    dataset.ImageComments = "Synthetic image rendered from a seed; no patient"


def _describe_image(dataset: Dataset, study: PhantomStudy) -> None:
    """Add how the film was taken and how it is to be shown."""
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = study.view
    dataset.PatientOrientation = ["L", "F"]
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.PixelSpacing = [study.spacing_mm, study.spacing_mm]
    dataset.ImagerPixelSpacing = [study.spacing_mm, study.spacing_mm]
    dataset.PixelIntensityRelationship = "LOG"
    # PS3.3 C.8.11.3.1.2: -1 where larger stored values mean less X-ray intensity at the detector.
    dataset.PixelIntensityRelationshipSign = 1 if study.photometric == "MONOCHROME1" else -1
    dataset.RescaleIntercept = "0"
    dataset.RescaleSlope = "1"
    dataset.RescaleType = "US"
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    if dataset.Modality == "DX":
        dataset.PresentationIntentType = "FOR PRESENTATION"
        dataset.PresentationLUTShape = "INVERSE" if study.photometric == "MONOCHROME1" else "IDENTITY"
    if study.index % 3:  # some senders give a window, some leave it to the viewer
        top = 2**study.bits_stored
        dataset.WindowCenter = str(top // 2)
        dataset.WindowWidth = str(top)


def _add_pixels(dataset: Dataset, study: PhantomStudy) -> None:
    """Add the stored values."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = study.photometric
    dataset.Rows, dataset.Columns = study.pixels.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = study.bits_stored
    dataset.HighBit = study.bits_stored - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = study.pixels.astype("<u2").tobytes()
