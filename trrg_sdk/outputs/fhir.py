"""FHIR R4: a transaction Bundle with a preliminary DiagnosticReport, an Observation a clue, Device and Provenance.

A server that is given the bundle files it in one piece, and once: what has an identifier is created only where that is
not there yet. Patient and ImagingStudy are referred to by identifier; they are the server's own. Neither R4 nor R5 lets
a Device perform a DiagnosticReport, so it stands in every Observation and as the agent of the Provenance.

Checked with ``fhir.resources`` before it is written. That package has R4B (4.3.0) and R5, no plain R4 (4.0.1); of the
resources used here R4 and R4B are the same, and the tests also read the bundle with models generated from 4.0.1.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Literal
from uuid import UUID

from trrg_sdk.context import StudyContext
from trrg_sdk.errors import InputError
from trrg_sdk.outputs import coding, missing_package, text
from trrg_sdk.outputs.coding import Coding, clue_coding, presence
from trrg_sdk.outputs.identity import (
    MANUFACTURER,
    content_time,
    device_name,
    device_uuid,
    require_context,
    result_uuid,
    to_uid,
)
from trrg_sdk.reading import Reading
from trrg_sdk.report import ClueScore

NAME = "fhir"
EXTENSION = ".fhir.json"
SHOWS_IMAGE = False

Release = Literal["R4B", "R5"]
_URI = "urn:ietf:rfc:3986"
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"


def render(reading: Reading) -> bytes:
    """UTF-8 JSON of an R4 Bundle.

    Raises:
        InputError: The input was no DICOM file or lacks its UIDs.
    """
    return serialised(bundle(reading, release="R4B", output=NAME), release="R4B")


def unavailable_reason() -> str | None:
    """What has to be installed, or None."""
    return missing_package("fhir.resources", extra="fhir", output=NAME)


def bundle(reading: Reading, *, release: Release, output: str) -> dict[str, Any]:
    """The Bundle as plain JSON values.

    Args:
        reading: What is written.
        release: Which of FHIR; the few differences stand where they are.
        output: The format's name, for messages.

    Raises:
        InputError: See ``require_context``.
    """
    context = require_context(reading, output)
    device = device_uuid(reading.report.provenance)
    entries = [_entry(_device(reading, release), device)]
    observations = [
        (_observation(clue, reading, context, device), _clue_id(clue, reading)) for clue in reading.report.clues
    ]
    entries += [_entry(resource, name) for resource, name in observations]
    report = result_uuid("fhir", reading)
    entries.append(_entry(_report(reading, context, [name for _, name in observations], release), report))
    entries.append(_provenance(reading, context, report, device))
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


def serialised(value: dict[str, Any], *, release: Release) -> bytes:
    """Check a Bundle against the models of its release and write it.

    Raises:
        InputError: A value is none that FHIR allows (code ``not_fhir``); the message names the place and no value.
    """
    from pydantic import ValidationError

    package = "fhir.resources.R4B" if release == "R4B" else "fhir.resources"
    model = import_module(f"{package}.bundle").Bundle
    try:
        model.model_validate(value)
    except ValidationError as error:
        places = sorted({".".join(map(str, item["loc"])) for item in error.errors(include_input=False)})
        raise InputError(
            f"the report does not make a valid FHIR {release} bundle at {', '.join(places)}; take another format",
            code="not_fhir",
        ) from None
    return (json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()


def _clue_id(clue: ClueScore, reading: Reading) -> UUID:
    return result_uuid(f"fhir/{clue.name}", reading)


def _entry(resource: dict[str, Any], name: UUID) -> dict[str, Any]:
    kind, identifier = resource["resourceType"], f"urn:oid:{to_uid(name)}"
    resource = {"resourceType": kind, "identifier": [{"system": _URI, "value": identifier}], **resource}
    request = {"method": "POST", "url": kind, "ifNoneExist": f"identifier={_URI}|{identifier}"}
    return {"fullUrl": name.urn, "resource": resource, "request": request}


def _device(reading: Reading, release: Release) -> dict[str, Any]:
    made, name = reading.report.provenance, device_name(reading.report)
    named = (
        {"name": [{"value": name, "type": "user-friendly-name"}]}
        if release == "R5"
        else {"deviceName": [{"name": name, "type": "user-friendly-name"}]}
    )
    return {
        "resourceType": "Device",
        "manufacturer": MANUFACTURER,
        "modelNumber": made.bundle_id,
        "serialNumber": made.manifest_sha256,
        "version": [{"value": made.sdk_version}],
        **named,
    }


def _observation(clue: ClueScore, reading: Reading, context: StudyContext, device: UUID) -> dict[str, Any]:
    components: list[dict[str, Any]] = [
        {"code": _concept(coding.PROBABILITY), "valueQuantity": _quantity(clue.probability)},
        {"code": _concept(coding.THRESHOLD), "valueQuantity": _quantity(clue.threshold)},
    ]
    if clue.forced:
        components.append({"code": _concept(coding.FORCED), "valueBoolean": True})
    return {
        "resourceType": "Observation",
        "status": "preliminary",
        "category": [_category("observation-category", "imaging", "Imaging")],
        "code": _concept(clue_coding(clue.name), text_=text.printable(clue.name)),
        **_about(reading, context),
        "valueCodeableConcept": _concept(presence(clue.present)),
        "device": {"reference": device.urn},
        "derivedFrom": [_study(context)],
        "component": components,
    }


def _report(reading: Reading, context: StudyContext, results: list[UUID], release: Release) -> dict[str, Any]:
    report = reading.report
    impression = " ".join(item.text for item in report.sentences if item.section == "impression")
    order = {"identifier": {"type": _category("v2-0203", "ACSN", "Accession ID"), "value": context.accession_number}}
    return {
        "resourceType": "DiagnosticReport",
        **({"basedOn": [{"type": "ServiceRequest", **order}]} if context.accession_number else {}),
        "status": "preliminary",
        "category": [_category("v2-0074", "RAD", "Radiology")],
        "code": _concept(coding.REPORT),
        **_about(reading, context),
        "result": [{"reference": name.urn} for name in results],
        "study" if release == "R5" else "imagingStudy": [_study(context)],
        "conclusion": " ".join(
            (text.BANNER, *map(text.printable, (*text.warnings(report), impression or report.text)))
        ),
        "presentedForm": [
            {
                "contentType": "text/plain; charset=utf-8",
                "language": "en",
                "data": base64.b64encode(text.render(reading)).decode(),
                "title": "Draft report with the evidence of each sentence",
            }
        ],
    }


def _provenance(reading: Reading, context: StudyContext, report: UUID, device: UUID) -> dict[str, Any]:
    resource = {
        "resourceType": "Provenance",
        "target": [{"reference": report.urn}],
        "recorded": _instant(content_time(reading)),
        "agent": [
            {
                "type": _category("provenance-participant-type", "assembler", "Assembler"),
                "who": {"reference": device.urn},
            }
        ],
        "entity": [{"role": "source", "what": _study(context)}],
    }
    # A Provenance has no identifier to ask for: a bundle that is sent twice leaves a second one.
    return {
        "fullUrl": result_uuid("fhir/provenance", reading).urn,
        "resource": resource,
        "request": {"method": "POST", "url": "Provenance"},
    }


def _about(reading: Reading, context: StudyContext) -> dict[str, Any]:
    """Whose, of when, said when: what is known of it."""
    found: dict[str, Any] = {}
    if context.patient_id:
        issuer = {"assigner": {"display": context.issuer_of_patient_id}} if context.issuer_of_patient_id else {}
        found["subject"] = {"type": "Patient", "identifier": {"value": context.patient_id, **issuer}}
    if when := _study_time(context):
        found["effectiveDateTime"] = when
    if not context.deidentified:
        found["issued"] = _instant(content_time(reading))
    return found


def _study_time(context: StudyContext) -> str:
    """FHIR dateTime of the study: without a time zone only its day, because FHIR allows no time without one."""
    try:
        day = datetime.strptime(context.study_date, "%Y%m%d").date().isoformat()
    except ValueError:
        return ""
    zone, clock = context.timezone_offset, context.study_time.partition(".")[0]
    if not zone or len(clock) != 6:
        return day
    return f"{day}T{clock[:2]}:{clock[2:4]}:{clock[4:]}{zone[:3]}:{zone[3:]}"


def _instant(moment: datetime) -> str:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat(timespec="seconds")


def _study(context: StudyContext) -> dict[str, Any]:
    identifier = {"system": "urn:dicom:uid", "value": f"urn:oid:{context.study_instance_uid}"}
    return {"type": "ImagingStudy", "identifier": identifier}


def _concept(code: Coding, *, text_: str = "") -> dict[str, Any]:
    item = {"system": coding.SYSTEMS[code.scheme], "code": code.value, "display": code.meaning}
    return {"coding": [item], "text": text_ or code.meaning}


def _category(system: str, code: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": f"{_TERMINOLOGY}/{system}", "code": code, "display": display}]}


def _quantity(value: float) -> dict[str, Any]:
    return {"value": round(value, 6), "system": coding.SYSTEMS["UCUM"], "code": "1"}
