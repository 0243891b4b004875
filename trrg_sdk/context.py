"""Whose study a report belongs to: the patient's and the study's attributes that a filed result repeats.

A ``Report`` holds no patient data. What a DICOM SR, a FHIR resource or an HL7 message needs to reach the right patient
is kept here, apart, and shows itself to nobody: the ``repr`` is empty of values.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from trrg_sdk import dicom_tags as tags
from trrg_sdk.errors import DicomError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

UNDECODABLE = "\N{REPLACEMENT CHARACTER}"
_IDENTITY = ("PatientName", "PatientID", "IssuerOfPatientID")
# PS3.5 6.2: what the VR of each element allows. A value outside is left out, and a note says so.
_FORMS = {
    "PatientBirthDate": re.compile(r"\d{8}"),
    "StudyDate": re.compile(r"\d{8}"),
    "StudyTime": re.compile(r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?"),
    "PatientSex": re.compile(r"[MFO]"),
    "TimezoneOffsetFromUTC": re.compile(r"[+-]\d{4}"),
    "BurnedInAnnotation": re.compile(r"YES|NO"),
    "AccessionNumber": re.compile(r"[^\\]{1,16}"),
    "StudyID": re.compile(r"[^\\]{1,16}"),
    "StudyDescription": re.compile(r"[^\\]{1,64}"),
    "ReferringPhysicianName": re.compile(r"[^\\]{1,200}"),
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class StudyContext:
    r"""What the image's file says about its patient and study. Every string is "" where the file says nothing.

    Attributes:
        patient_name: (0010,0010), decoded; groups (alphabetic, ideographic, phonetic) parted by ``=``.
        patient_id: (0010,0020).
        issuer_of_patient_id: (0010,0021).
        patient_birth_date: (0010,0030), YYYYMMDD.
        patient_sex: (0010,0040): M, F or O.
        study_instance_uid: (0020,000D).
        study_date: (0008,0020), YYYYMMDD.
        study_time: (0008,0030), HHMMSS.FFFFFF or its beginning.
        study_id: (0020,0010).
        study_description: (0008,1030).
        accession_number: (0008,0050).
        referring_physician_name: (0008,0090), decoded.
        timezone_offset: (0008,0201), such as ``+0100``.
        series_instance_uid: (0020,000E) of the reported image.
        sop_class_uid: (0008,0016) of the reported image.
        sop_instance_uid: (0008,0018) of the reported image.
        burned_in_annotation: (0028,0301): YES, NO or "".
        unreadable: Keywords of identifying elements that do not fit the file's character set or their type.
        notes: What was left out and why, one sentence each, without values.
        deidentified: True after ``trrg_sdk.outputs.deidentify``.
    """

    patient_name: str = ""
    patient_id: str = ""
    issuer_of_patient_id: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    study_instance_uid: str = ""
    study_date: str = ""
    study_time: str = ""
    study_id: str = ""
    study_description: str = ""
    accession_number: str = ""
    referring_physician_name: str = ""
    timezone_offset: str = ""
    series_instance_uid: str = ""
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    burned_in_annotation: str = ""
    unreadable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    deidentified: bool = field(default=False)

    def __repr__(self) -> str:
        """Show no value: a ``repr`` ends up in logs."""
        return f"<StudyContext: values hidden{', de-identified' if self.deidentified else ''}>"


def read_context(dataset: Dataset) -> StudyContext:
    """Read the attributes; call it inside ``dicom_tags.quiet()``.

    Args:
        dataset: A parsed DICOM file of any character set.

    Returns:
        The values as Unicode. What does not fit its VR is left out with a note; an identifying value that cannot be
        decoded is named in ``unreadable``, so that nothing is filed under a damaged name.
    """
    notes: list[str] = []
    form = {keyword: _formed(dataset, keyword, notes) for keyword in _FORMS}
    identity = {keyword: _text(dataset, keyword) for keyword in _IDENTITY}
    if _is_undeclared(dataset, (*identity.values(), form["ReferringPhysicianName"])):
        notes.append("the file names no character set, and a name in it is not plain ASCII: it was read as Latin-1")
    return StudyContext(
        patient_name=identity["PatientName"],
        patient_id=identity["PatientID"],
        issuer_of_patient_id=identity["IssuerOfPatientID"],
        patient_birth_date=form["PatientBirthDate"],
        patient_sex=form["PatientSex"],
        study_instance_uid=tags.uid(dataset, "StudyInstanceUID"),
        study_date=form["StudyDate"],
        study_time=form["StudyTime"],
        study_id=form["StudyID"],
        study_description=form["StudyDescription"],
        accession_number=form["AccessionNumber"],
        referring_physician_name=form["ReferringPhysicianName"],
        timezone_offset=form["TimezoneOffsetFromUTC"],
        series_instance_uid=tags.uid(dataset, "SeriesInstanceUID"),
        sop_class_uid=tags.uid(dataset, "SOPClassUID"),
        sop_instance_uid=tags.uid(dataset, "SOPInstanceUID"),
        burned_in_annotation=form["BurnedInAnnotation"],
        unreadable=tuple(keyword for keyword, value in identity.items() if not _identifies(value)),
        notes=tuple(notes),
    )


def _text(dataset: Dataset, keyword: str) -> str:
    r"""The value as text, several ones parted by ``\``; the replacement character where it cannot be read."""
    try:
        value = tags.raw(dataset, keyword)
        many = _is_multiple(value)
        return "" if value is None else ("\\".join(map(str, value)) if many else str(value)).strip("\0 ")
    except (DicomError, UnicodeError, LookupError):
        return UNDECODABLE


def _formed(dataset: Dataset, keyword: str, notes: list[str]) -> str:
    """The value when its VR allows it, else "" and a note."""
    value = _text(dataset, keyword)
    fits = _is_text(value) and _FORMS[keyword].fullmatch(value)
    if not value or (fits and (not keyword.endswith("Date") or _is_day(value))):
        return value
    notes.append(f"{tags.label(keyword)} holds a value that its type does not allow; it was left out")
    return ""


def _identifies(value: str) -> bool:
    r"""Whether this is one name or identifier of PS3.5 6.2: at most 64 characters (a name: in each group), no ``\``."""
    return _is_text(value) and "\\" not in value and all(len(group) <= 64 for group in value.split("="))


def _is_text(value: str) -> bool:
    """Whether everything was decoded and nothing controls; a wide space (U+3000) is a letter of Japanese names."""
    return UNDECODABLE not in value and not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in value)


def _is_day(value: str) -> bool:
    try:
        return bool(datetime.strptime(value, "%Y%m%d"))
    except ValueError:
        return False


def _is_undeclared(dataset: Dataset, names: tuple[str, ...]) -> bool:
    from pydicom.charset import python_encoding

    declared = tags.raw(dataset, "SpecificCharacterSet")
    terms = {str(term) for term in (declared if _is_multiple(declared) else [declared or ""])}
    known = terms & set(python_encoding) - {"", "ISO_IR 6", "ISO 2022 IR 6"}
    return not known and not all(map(str.isascii, names))


def _is_multiple(value: Any) -> bool:
    from pydicom.multival import MultiValue

    return isinstance(value, MultiValue)
