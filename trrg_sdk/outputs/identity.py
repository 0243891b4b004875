"""Identifiers that are always the same for the same study and bundle, so that a result filed twice is one result.

A UID is ``2.25.`` and the whole number of a UUID (PS3.5 B.2). Its UUID is version 5: a SHA-1 of names.
"""

from __future__ import annotations

import uuid
from datetime import datetime

from trrg_sdk.context import StudyContext
from trrg_sdk.errors import InputError
from trrg_sdk.reading import Reading
from trrg_sdk.report import Provenance, Report

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "trrg-sdk")
_NOBODY = datetime(1900, 1, 1)
_REQUIRED = {
    "StudyInstanceUID": "study_instance_uid",
    "SeriesInstanceUID": "series_instance_uid",
    "SOPClassUID": "sop_class_uid",
    "SOPInstanceUID": "sop_instance_uid",
}
MANUFACTURER = "TRRG SDK"


def result_uuid(purpose: str, reading: Reading) -> uuid.UUID:
    """Name a result.

    Args:
        purpose: What it is, such as ``"sr"``: each has its own.
        reading: The study's.

    Returns:
        A UUID of the purpose, the study, the image, the bundle, the version of this package, the forced clues and what
        of the gate was overridden: what decides the content. Device, threads and time are left out: they do not
        make another result.
    """
    report, context = reading.report, reading.context or StudyContext()
    forced = [f"{clue.name}={clue.probability}" for clue in report.clues if clue.forced]
    images = [image.sop_instance_uid for image in report.images if image.used]
    parts = [
        purpose,
        context.study_instance_uid,
        context.sop_instance_uid or ",".join(images),
        report.provenance.manifest_sha256,
        report.provenance.sdk_version,
        *forced,
        *(f"overridden {reason.code}" for reason in report.gate.overridden),
    ]
    if not context.sop_instance_uid and not any(images):
        parts.append(report.text)  # an array has no name of its own
    return uuid.uuid5(_NAMESPACE, "\n".join(parts))


def result_uid(purpose: str, reading: Reading) -> str:
    """``result_uuid`` as a DICOM UID."""
    return to_uid(result_uuid(purpose, reading))


def series_uid(purpose: str, reading: Reading) -> str:
    """UID of the series that holds what one bundle writes of one kind about one study."""
    context = reading.context or StudyContext()
    sha = reading.report.provenance.manifest_sha256
    return to_uid(uuid.uuid5(_NAMESPACE, f"series\n{purpose}\n{context.study_instance_uid}\n{sha}"))


def device_uuid(made: Provenance) -> uuid.UUID:
    """UUID of the observer: this version of the program with this bundle, wherever it runs."""
    return uuid.uuid5(_NAMESPACE, f"device\n{made.manifest_sha256}\n{made.sdk_version}")


def to_uid(value: uuid.UUID) -> str:
    """A UUID as a DICOM UID."""
    return f"2.25.{value.int}"


def content_time(reading: Reading) -> datetime:
    """When the content was made; in a de-identified result the first day of 1900, which says nothing.

    In the time zone of the study where its file names one.
    """
    context = reading.context
    if context and context.deidentified:
        return _NOBODY
    made = reading.made_at or datetime.now().astimezone()
    zone = context.timezone_offset if context else ""
    return made.astimezone(datetime.strptime(zone, "%z").tzinfo) if zone else made


def require_context(reading: Reading, output: str) -> StudyContext:
    """The context that a DICOM or clinical output cannot do without.

    Args:
        reading: What is to be written.
        output: Its format, for the message.

    Raises:
        InputError: It was no DICOM file (``no_dicom_context``), a UID is missing (``missing_tag``), or the patient's
            name or identifier is damaged (``bad_value``).
    """
    context = reading.context
    if context is None:
        raise InputError(
            f"output {output} belongs to a patient's study, and the input was no DICOM file; give the DICOM file, or "
            "take text, json or html",
            code="no_dicom_context",
        )
    missing = [keyword for keyword, attribute in _REQUIRED.items() if not getattr(context, attribute)]
    if missing:
        raise InputError(
            f"output {output} refers to the image, whose {', '.join(missing)} is missing or malformed; "
            "export the image again at the modality",
            code="missing_tag",
        )
    if context.unreadable:
        raise InputError(
            f"output {output}: {', '.join(context.unreadable)} does not fit its type or the character set, and "
            "nothing is filed under a damaged name; correct it at the modality",
            code="bad_value",
        )
    return context


def device_name(report: Report) -> str:
    """The program, as an observer is named."""
    return f"trrg-sdk {report.provenance.sdk_version}"
