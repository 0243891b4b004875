"""FHIR bundles: the models of three releases read them, and they say what the report says."""

from __future__ import annotations

import base64
import dataclasses
import json
from importlib import import_module
from typing import Any

import pytest

from tests.sdk.chest_dicom import MARK
from tests.sdk.handmade_reports import SOP_UID, full_context, full_reading, full_report
from trrg_sdk.errors import InputError
from trrg_sdk.outputs import open_output
from trrg_sdk.outputs.deidentify import deidentify
from trrg_sdk.reading import Reading

pytest.importorskip("fhir.resources", reason="needs the extra fhir")
RELEASES = {"fhir": "imagingStudy", "fhir-r5": "study"}


def written(name: str, reading: Reading | None = None) -> dict[str, Any]:
    value = json.loads(open_output(name).render(reading or full_reading()))
    assert isinstance(value, dict)
    return value


def resources(bundle: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry["resource"] for entry in bundle["entry"] if entry["resource"]["resourceType"] == kind]


@pytest.mark.parametrize(("name", "package"), [("fhir", "fhir.resources.R4B"), ("fhir-r5", "fhir.resources")])
def test_the_models_of_the_release_accept_each_resource(name: str, package: str) -> None:
    for entry in written(name)["entry"]:
        kind = entry["resource"]["resourceType"]
        model = getattr(import_module(f"{package}.{kind.lower()}"), kind)
        assert model.model_validate(entry["resource"]).get_resource_type() == kind


@pytest.mark.filterwarnings("ignore")  # fhirclient's own
def test_models_generated_from_4_0_1_accept_the_bundle() -> None:
    pytest.importorskip("fhirclient", reason="needs the extra dev")
    bundle = import_module("fhirclient.models.bundle").Bundle
    value = written("fhir")
    assert bundle(value, strict=True).as_json() == value
    value["entry"][-2]["resource"]["study"] = []
    with pytest.raises(import_module("fhirclient.models.fhirabstractbase").FHIRValidationError):
        bundle(value, strict=True)


@pytest.mark.parametrize(("name", "study"), RELEASES.items())
def test_the_report_is_preliminary_and_refers_to_patient_and_study(name: str, study: str) -> None:
    (report,) = resources(written(name), "DiagnosticReport")
    context = full_context()
    assert report["status"] == "preliminary"
    assert report["code"]["coding"][0]["code"] == "18748-4"
    assert report["subject"]["identifier"]["value"] == context.patient_id
    assert report["subject"]["identifier"]["assigner"]["display"] == context.issuer_of_patient_id
    assert report[study][0]["identifier"] == {"system": "urn:dicom:uid", "value": "urn:oid:2.25.1"}
    assert report["basedOn"][0]["identifier"]["value"] == context.accession_number
    assert report["effectiveDateTime"] == "1999-08-07"
    assert report["issued"] == "2026-03-04T05:06:07+00:00"
    assert report["conclusion"].startswith("DRAFT")
    assert "Effusion of 王." in report["conclusion"]
    shown = base64.b64decode(report["presentedForm"][0]["data"]).decode()
    assert "There is a left pleural effusion. [supported: Pleural Effusion 0.93]" in shown


@pytest.mark.parametrize("name", RELEASES)
def test_each_clue_is_an_observation(name: str) -> None:
    bundle, report = written(name), full_report()
    observations = resources(bundle, "Observation")
    assert [item["code"]["text"] for item in observations] == list(report.clues.names)
    for item, clue in zip(observations, report.clues, strict=True):
        assert item["status"] == "preliminary"
        assert item["valueCodeableConcept"]["text"] == ("Present" if clue.present else "Absent")
        assert item["component"][0]["valueQuantity"]["value"] == clue.probability
        assert item["component"][1]["valueQuantity"]["value"] == clue.threshold
        assert any(part.get("valueBoolean") for part in item["component"]) == clue.forced
    (device,) = resources(bundle, "Device")
    assert device["serialNumber"] == report.provenance.manifest_sha256
    assert device["modelNumber"] == report.provenance.bundle_id


@pytest.mark.parametrize("name", RELEASES)
def test_every_reference_inside_the_bundle_resolves(name: str) -> None:
    bundle = written(name)
    known = {entry["fullUrl"] for entry in bundle["entry"]}
    assert len(known) == len(bundle["entry"])
    (report,) = resources(bundle, "DiagnosticReport")
    (provenance,) = resources(bundle, "Provenance")
    used = {item["reference"] for item in report["result"]} | {provenance["target"][0]["reference"]}
    used |= {item["device"]["reference"] for item in resources(bundle, "Observation")}
    assert used <= known
    assert provenance["agent"][0]["who"]["reference"] in known


@pytest.mark.parametrize("name", RELEASES)
def test_a_second_time_creates_nothing_new(name: str) -> None:
    first, second = written(name), written(name)
    assert first == second
    for entry in first["entry"]:
        if entry["resource"]["resourceType"] != "Provenance":
            assert entry["resource"]["identifier"][0]["value"] in entry["request"]["ifNoneExist"]


def test_a_study_with_a_time_zone_has_its_time() -> None:
    (report,) = resources(written("fhir", full_reading(timezone_offset="+0100")), "DiagnosticReport")
    assert report["effectiveDateTime"] == "1999-08-07T10:11:12+01:00"
    (report,) = resources(written("fhir", full_reading(study_date="19991399")), "DiagnosticReport")
    assert "effectiveDateTime" not in report


@pytest.mark.parametrize("name", RELEASES)
def test_a_deidentified_one_holds_nothing_of_the_patient(name: str) -> None:
    text = json.dumps(written(name, deidentify(full_reading(), b"k" * 32)))
    for value in (MARK, "1901-02-03", "1999-08-07", SOP_UID, 'urn:oid:2.25.1"'):
        assert value not in text


@pytest.mark.parametrize("name", RELEASES)
def test_an_array_is_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        written(name, Reading(full_report()))
    assert caught.value.code == "no_dicom_context"


@pytest.mark.parametrize("name", RELEASES)
def test_what_fhir_does_not_allow_is_refused_without_showing_it(name: str) -> None:
    report = full_report()
    broken = dataclasses.replace(report.provenance, bundle_id="")
    with pytest.raises(InputError, match="modelNumber") as caught:
        written(name, dataclasses.replace(full_reading(), report=dataclasses.replace(report, provenance=broken)))
    assert caught.value.code == "not_fhir"
    assert MARK not in str(caught.value)
