"""What every DICOM object that we write has in common: whose it is, what made it, when, and its bytes.

Patient and study are repeated from the image in UTF-8 (``ISO_IR 192``), which holds the names of all other sets. Series
and instance are new ones with UIDs that depend on study and bundle only. Content, series and creation time are
the time of the reading: the one thing in which two results of the same study and bundle differ.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from trrg_sdk.context import StudyContext
from trrg_sdk.outputs import coding
from trrg_sdk.outputs.deidentify import METHODS
from trrg_sdk.outputs.identity import MANUFACTURER, content_time, require_context, result_uid, series_uid
from trrg_sdk.reading import Reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


class Kind(NamedTuple):
    """One kind of object.

    Attributes:
        output: The output's name; it makes the UIDs differ.
        sop_class_uid: (0008,0016).
        modality: (0008,0060).
        series_number: (0020,0011), high, so that it does not take a modality's own.
        series_description: (0008,103E).
    """

    output: str
    sop_class_uid: str
    modality: str
    series_number: int
    series_description: str


def image_reference(context: StudyContext) -> Dataset:
    """The reported image as far as a document refers to it; it holds no patient."""
    from pydicom.dataset import Dataset

    image = Dataset()
    image.StudyInstanceUID = context.study_instance_uid
    image.SeriesInstanceUID = context.series_instance_uid
    image.SOPClassUID = context.sop_class_uid
    image.SOPInstanceUID = context.sop_instance_uid
    return image


def head(reading: Reading, kind: Kind) -> Dataset:
    """Patient, study, series, equipment and SOP common modules (PS3.3 C.7, C.12.1).

    Args:
        reading: What is written.
        kind: Of which kind.

    Raises:
        InputError: See ``require_context``.
    """
    from pydicom.dataset import Dataset

    context, made = require_context(reading, kind.output), reading.report.provenance
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = kind.sop_class_uid
    dataset.SOPInstanceUID = result_uid(kind.output, reading)
    dataset.InstanceNumber = 1
    _patient_and_study(dataset, context)
    dataset.SeriesInstanceUID = series_uid(kind.output, reading)
    dataset.SeriesNumber = kind.series_number
    dataset.SeriesDescription = kind.series_description
    dataset.Modality = kind.modality
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = made.bundle_id[:64]
    dataset.DeviceSerialNumber = made.manifest_sha256[:64]
    dataset.SoftwareVersions = made.sdk_version
    dataset.CodingSchemeIdentificationSequence = [_private_scheme()]
    _times(dataset, reading, context)
    if context.deidentified:
        _deidentified(dataset)
    return dataset


def to_bytes(dataset: Dataset) -> bytes:
    """The file (PS3.10), Explicit VR Little Endian."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = UID(dataset.SOPClassUID)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def coded(code: coding.Coding) -> Dataset:
    """One item of a code sequence (PS3.3 8.8)."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code
    return item


def _patient_and_study(dataset: Dataset, context: StudyContext) -> None:
    dataset.PatientName = context.patient_name
    dataset.PatientID = context.patient_id
    dataset.PatientBirthDate = context.patient_birth_date
    dataset.PatientSex = context.patient_sex
    dataset.StudyInstanceUID = context.study_instance_uid
    dataset.StudyDate = context.study_date
    dataset.StudyTime = context.study_time
    dataset.StudyID = context.study_id
    dataset.AccessionNumber = context.accession_number
    dataset.ReferringPhysicianName = context.referring_physician_name
    for keyword, value in (
        ("IssuerOfPatientID", context.issuer_of_patient_id),
        ("StudyDescription", context.study_description),
        ("TimezoneOffsetFromUTC", context.timezone_offset),
    ):
        if value:
            setattr(dataset, keyword, value)


def _times(dataset: Dataset, reading: Reading, context: StudyContext) -> None:
    moment = content_time(reading)
    date, time = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")
    dataset.ContentDate, dataset.ContentTime = date, time
    if not context.deidentified:
        dataset.SeriesDate, dataset.SeriesTime = date, time
        dataset.InstanceCreationDate, dataset.InstanceCreationTime = date, time


def _private_scheme() -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodingSchemeDesignator = coding.PRIVATE_SCHEME
    item.CodingSchemeUID = coding.PRIVATE_SCHEME_UID
    item.CodingSchemeName = coding.PRIVATE_SCHEME_NAME
    return item


def _deidentified(dataset: Dataset) -> None:
    del dataset.SeriesDescription  # ours says nothing of the patient, but the profile removes any
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = [meaning for _, meaning in METHODS]
    dataset.DeidentificationMethodCodeSequence = [
        coded(coding.Coding(value, "DCM", meaning)) for value, meaning in METHODS
    ]
    dataset.LongitudinalTemporalInformationModified = "REMOVED"
