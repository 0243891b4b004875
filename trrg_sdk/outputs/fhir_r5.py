"""FHIR R5: what ``trrg_sdk.outputs.fhir`` writes, in the terms of release 5."""

from __future__ import annotations

from trrg_sdk.outputs import missing_package
from trrg_sdk.outputs.fhir import bundle, serialised
from trrg_sdk.reading import Reading

NAME = "fhir-r5"
EXTENSION = ".fhir-r5.json"
SHOWS_IMAGE = False


def render(reading: Reading) -> bytes:
    """UTF-8 JSON of an R5 Bundle.

    Raises:
        InputError: The input was no DICOM file or lacks its UIDs.
    """
    return serialised(bundle(reading, release="R5", output=NAME), release="R5")


def unavailable_reason() -> str | None:
    """What has to be installed, or None."""
    return missing_package("fhir.resources", extra="fhir", output=NAME)
