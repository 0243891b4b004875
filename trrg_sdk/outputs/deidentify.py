"""PS3.15 Annex E, Basic Application Level Confidentiality Profile, for what the outputs write.

Names, dates, numbers of orders and free text are removed; UIDs and the patient's identifier are replaced by keyed
hashes, so that the same key gives the same ones and nobody without the key can find the old ones or try them out. The
content of a report is made of clue scores and generated text and holds nothing of the patient: that is the Clean
Structured Content option. **The pixels are not cleaned**: an image whose file says that it has burned-in annotation is
refused, and one whose file does not say is as clean as its modality made it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trrg_sdk.context import StudyContext
from trrg_sdk.errors import InputError, UsageError
from trrg_sdk.reading import Reading

MIN_KEY_BYTES = 32
METHODS = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113104", "Clean Structured Content Option"),
    ("113109", "Retain Device Identity Option"),
)
"""Codes of scheme DCM (CID 7050): what was done. The device is our program, which outputs have to name."""


def read_key(path: str | os.PathLike[str]) -> bytes:
    """Read the secret key.

    Args:
        path: A file of at least 32 bytes, best random ones.

    Raises:
        UsageError: It cannot be read or is too short.
    """
    try:
        key = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"the key of --deidentify cannot be read ({error.strerror}); check path and rights") from error
    if len(key) < MIN_KEY_BYTES:
        raise UsageError(
            f"the key of --deidentify has {len(key)} bytes, at least {MIN_KEY_BYTES} are expected; "
            f"make one with: head -c {MIN_KEY_BYTES} /dev/urandom > deidentify.key"
        )
    return key


def deidentify(reading: Reading, key: bytes) -> Reading:
    """Take the patient out of a reading.

    Args:
        reading: Of one study; it is not changed.
        key: Secret. The same key gives the same replacements, so that the results of one study stay together.

    Returns:
        A reading that every output can be written from. Its content time is a dummy.

    Raises:
        InputError: The image has burned-in annotation (code ``burned_in``).
    """

    def uid(old: str) -> str:
        return replacement_uid(old, key) if old else ""

    context = reading.context
    if context is not None and context.burned_in_annotation == "YES":
        raise InputError(
            "the file says that patient data are burned into the pixels, which --deidentify does not clean; "
            "clean the image first",
            code="burned_in",
        )
    images = tuple(replace(image, sop_instance_uid=uid(image.sop_instance_uid)) for image in reading.report.images)
    clean = None if context is None else _clean(context, uid, key)
    return replace(reading, report=replace(reading.report, images=images), context=clean, made_at=None)


def replacement_uid(old: str, key: bytes) -> str:
    """The UID that takes the place of ``old``: ``2.25.`` and 122 bits of HMAC-SHA-256."""
    digest = hmac.new(key, f"uid\n{old}".encode(), hashlib.sha256).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def _clean(context: StudyContext, uid: Callable[[str], str], key: bytes) -> StudyContext:
    who = f"patient\n{context.issuer_of_patient_id}\n{context.patient_id}"
    pseudonym = f"ANON-{hmac.new(key, who.encode(), hashlib.sha256).hexdigest()[:16].upper()}"
    return StudyContext(
        patient_name=pseudonym,
        patient_id=pseudonym,
        study_instance_uid=uid(context.study_instance_uid),
        series_instance_uid=uid(context.series_instance_uid),
        sop_instance_uid=uid(context.sop_instance_uid),
        sop_class_uid=context.sop_class_uid,
        burned_in_annotation=context.burned_in_annotation,
        deidentified=True,
    )
