"""Structured reports: what stands in them, and what dciodvfy, dcmtk and highdicom make of them."""

from __future__ import annotations

import dataclasses
import io
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.sdk.chest_dicom import MARK, chest_dataset
from tests.sdk.dicom_builder import to_bytes
from tests.sdk.handmade_reports import MADE_AT, SOP_UID, full_context, full_reading, full_report
from tests.sdk.names import NAMES
from tests.sdk.peers import dciodvfy_errors, dsrdump, run_peer
from trrg_sdk.context import StudyContext
from trrg_sdk.dicom import load
from trrg_sdk.errors import InputError
from trrg_sdk.outputs import open_output
from trrg_sdk.outputs.coding import clue_coding
from trrg_sdk.outputs.deidentify import deidentify
from trrg_sdk.reading import Reading
from trrg_sdk.report import ClueScores

pytest.importorskip("highdicom", reason="needs the extra sr")
SR_FORMATS = {
    "sr": "1.2.840.10008.5.1.4.1.1.88.22",
    "sr-basic": "1.2.840.10008.5.1.4.1.1.88.11",
    "sr-3d": "1.2.840.10008.5.1.4.1.1.88.34",
}
TIMES = {
    "ContentDate",
    "ContentTime",
    "SeriesDate",
    "SeriesTime",
    "InstanceCreationDate",
    "InstanceCreationTime",
}


def written(name: str, reading: Reading | None = None) -> bytes:
    return open_output(name).render(reading or full_reading())


def parsed(content: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(content))


def concept(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def children(item: Dataset, meaning: str) -> list[Dataset]:
    return [child for child in item.get("ContentSequence", []) if concept(child) == meaning]


def context_from_file(charset: Any, name: str) -> StudyContext:
    """The context of a real file in that character set, as the reader decodes it."""
    dataset = chest_dataset(SpecificCharacterSet=charset, PatientName=name, ReferringPhysicianName=name)
    context = load(to_bytes(dataset)).context
    assert context is not None
    return context


@pytest.mark.parametrize("script", NAMES)
@pytest.mark.parametrize("name", SR_FORMATS)
def test_peers_accept_every_name(name: str, script: str, tmp_path: Path) -> None:
    charset, patient = NAMES[script]
    context = context_from_file(charset, patient)
    content = written(name, dataclasses.replace(full_reading(), context=context))
    assert dciodvfy_errors(content, tmp_path) == []
    shown = dsrdump(content, tmp_path)
    assert "error" not in shown.lower()
    assert patient.rstrip("=") in shown
    path = tmp_path / "dumped.dcm"
    assert f"[{patient.rstrip('=')}" in run_peer("dcmdump", "+U8", "+P", "PatientName", str(path), package="dcmtk")
    assert str(parsed(content).PatientName).rstrip("=") == patient.rstrip("=")


def test_dsrdump_prints_every_sentence_with_its_evidence(tmp_path: Path) -> None:
    shown = dsrdump(written("sr"), tmp_path)
    for sentence in full_report().sentences:
        assert f'"{sentence.text}"' in shown
    assert '(60046008,SCT,"Pleural effusion")="0.93"' in shown
    assert "UNVERIFIED" in shown
    assert "PARTIAL" in shown
    assert "PRELIMINARY" in shown


@pytest.mark.parametrize("name", SR_FORMATS)
def test_it_is_a_draft_in_the_same_study(name: str) -> None:
    document, context = parsed(written(name)), full_context()
    assert document.SOPClassUID == SR_FORMATS[name]
    assert document.file_meta.MediaStorageSOPClassUID == SR_FORMATS[name]
    assert (document.VerificationFlag, document.CompletionFlag, document.PreliminaryFlag) == (
        "UNVERIFIED",
        "PARTIAL",
        "PRELIMINARY",
    )
    assert document.StudyInstanceUID == context.study_instance_uid
    assert document.SeriesInstanceUID != context.series_instance_uid
    assert document.SpecificCharacterSet == "ISO_IR 192"
    assert document.AccessionNumber == context.accession_number
    assert document.PatientID == context.patient_id
    assert document.IssuerOfPatientID == context.issuer_of_patient_id
    (evidence,) = document.CurrentRequestedProcedureEvidenceSequence
    (image,) = evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert image.ReferencedSOPInstanceUID == SOP_UID


@pytest.mark.parametrize("name", SR_FORMATS)
def test_the_observer_is_the_program_with_its_bundle(name: str) -> None:
    document, made = parsed(written(name)), full_report().provenance
    observed = {concept(item): item for item in document.ContentSequence if item.RelationshipType == "HAS OBS CONTEXT"}
    assert observed["Device Observer Model Name"].TextValue == made.bundle_id
    assert observed["Device Observer Serial Number"].TextValue == made.manifest_sha256
    assert observed["Device Observer Name"].TextValue == f"trrg-sdk {made.sdk_version}"
    assert observed["Device Observer UID"].UID.startswith("2.25.")
    assert document.ManufacturerModelName == made.bundle_id
    assert document.DeviceSerialNumber == made.manifest_sha256


def test_each_sentence_stands_with_its_evidence() -> None:
    document, report = parsed(written("sr")), full_report()
    findings = children(document, "Findings")[0].ContentSequence
    impressions = children(document, "Impressions")[0].ContentSequence
    texts = [*findings, *impressions]
    assert [item.TextValue for item in texts] == [sentence.text for sentence in report.sentences]
    for item, sentence in zip(texts, report.sentences, strict=True):
        verdict = children(item, "Verdict of the clues on the sentence")[0]
        assert verdict.ConceptCodeSequence[0].CodeValue.lower() == sentence.verdict
        image = children(item, "Source image")[0]
        assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == SOP_UID
        numbers = [child for child in item.ContentSequence if child.ValueType == "NUM"]
        assert [float(n.MeasuredValueSequence[0].NumericValue) for n in numbers] == [
            evidence.probability for evidence in sentence.evidence
        ]
    (units,) = numbers_of(texts[0])[0].MeasuredValueSequence[0].MeasurementUnitsCodeSequence
    assert (units.CodeValue, units.CodingSchemeDesignator) == ("1", "UCUM")


def numbers_of(item: Dataset) -> list[Dataset]:
    return [child for child in item.ContentSequence if child.ValueType == "NUM"]


def test_a_forced_clue_is_marked_and_omissions_stand_apart() -> None:
    document = parsed(written("sr"))
    (number,) = numbers_of(children(document, "Findings")[0].ContentSequence[1])
    assert children(number, "Probability was set by the caller")
    (missed,) = children(document, "Perceived, but not stated")[0].ContentSequence
    assert concept(missed) == "Pulmonary edema"
    comments = [item.TextValue for item in children(document, "About this draft")[0].ContentSequence]
    assert any("forced" in comment for comment in comments)
    assert full_report().provenance.intended_use in comments
    assert set(full_report().notes) <= set(comments)


def test_the_patch_lies_where_the_picture_says() -> None:
    item = children(parsed(written("sr")), "Findings")[0].ContentSequence[0]
    (patch,) = children(item, "Patch where the clue is strongest")
    # row 4 of 6 of a square whose rows are the image's 200; column 1 of 6, and the image takes columns .1 to .9
    left, right = (1 / 6 - 0.1) / 0.8 * 160, (2 / 6 - 0.1) / 0.8 * 160
    top, bottom = 4 / 6 * 200, 5 / 6 * 200
    expected = [left, top, right, top, right, bottom, left, bottom, left, top]
    assert list(patch.GraphicData) == pytest.approx(expected, rel=1e-5)
    without = parsed(written("sr", dataclasses.replace(full_reading(), picture=None)))
    assert not children(children(without, "Findings")[0].ContentSequence[0], "Patch where the clue is strongest")


def test_highdicom_reads_the_report_back() -> None:
    import highdicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        document = highdicom.sr.EnhancedSR.from_dataset(parsed(written("sr")))
    (root,) = document.content
    read = []
    for section in root.ContentSequence:
        if section.value_type.value == "CONTAINER" and section.name.meaning in ("Findings", "Impressions"):
            for item in section.ContentSequence:
                verdict = next(child.value.value for child in item.ContentSequence if child.name.value == "VERDICT")
                numbers = [
                    (n.name.meaning, float(n.value)) for n in item.ContentSequence if n.value_type.value == "NUM"
                ]
                read.append((section.name.meaning.lower().rstrip("s"), item.value, verdict.lower(), numbers))
    assert read == [
        (
            sentence.section.rstrip("s"),
            sentence.text,
            sentence.verdict,
            [(clue_coding(evidence.clue).meaning, evidence.probability) for evidence in sentence.evidence],
        )
        for sentence in full_report().sentences
    ]


def test_dciodvfy_would_find_an_error(tmp_path: Path) -> None:
    document = parsed(written("sr"))
    document.PreliminaryFlag = "PERHAPS"
    del document.CompletionFlag
    assert len(dciodvfy_errors(to_bytes(document), tmp_path)) >= 2


def test_highdicom_reads_the_clues_back() -> None:
    import highdicom

    report = full_report()
    document = highdicom.sr.Comprehensive3DSR.from_dataset(parsed(written("sr-3d")))
    groups = document.content.get_image_measurement_groups()
    assert len(groups) == len(report.clues)
    for group, clue in zip(groups, report.clues, strict=True):
        values = {item.name.meaning: item.value for item in group.get_measurements()}
        assert values["Probability"] == clue.probability
        evaluation = group.get_qualitative_evaluations()[0]
        assert evaluation.value.meaning == ("Present" if clue.present else "Absent")
    forced = [item.name.meaning for item in groups[1].get_qualitative_evaluations()]
    assert "Probability was set by the caller" in forced


@pytest.mark.parametrize("name", SR_FORMATS)
def test_the_same_reading_is_the_same_file(name: str) -> None:
    assert written(name) == written(name)


@pytest.mark.parametrize("name", SR_FORMATS)
def test_a_second_reading_differs_in_its_times_only(name: str) -> None:
    later = dataclasses.replace(full_reading(), made_at=MADE_AT + timedelta(days=3, hours=1))
    first, second = parsed(written(name)), parsed(written(name, later))
    assert first.ContentDate == "20260304"
    assert second.ContentDate == "20260307"
    assert first.SOPInstanceUID == second.SOPInstanceUID
    assert {element.keyword for element in first if second[element.tag] != element} <= TIMES


def test_uids_follow_study_bundle_and_forced_clues() -> None:
    reading = full_reading()
    made = reading.report.provenance
    others = [
        full_reading(study_instance_uid="2.25.2"),
        full_reading(sop_instance_uid="2.25.3"),
        dataclasses.replace(
            reading,
            report=dataclasses.replace(reading.report, provenance=dataclasses.replace(made, manifest_sha256="cd" * 32)),
        ),
        dataclasses.replace(
            reading, report=dataclasses.replace(reading.report, clues=ClueScores(reading.report.clues.scores[:1]))
        ),
    ]
    uids = [parsed(written(name, each)).SOPInstanceUID for name in SR_FORMATS for each in (reading, *others)]
    assert len(set(uids)) == len(uids)
    assert all(len(uid) <= 64 for uid in uids)


def test_the_studys_time_zone_is_kept() -> None:
    document = parsed(written("sr", full_reading(timezone_offset="+0930")))
    assert document.TimezoneOffsetFromUTC == "+0930"
    assert (document.ContentDate, document.ContentTime) == ("20260304", "143607")


@pytest.mark.parametrize("name", SR_FORMATS)
@pytest.mark.parametrize(
    ("reading", "code"),
    [
        (Reading(full_report()), "no_dicom_context"),
        (full_reading(study_instance_uid=""), "missing_tag"),
        (full_reading(unreadable=("PatientName",)), "bad_value"),
    ],
    ids=["array", "no study", "damaged name"],
)
def test_what_cannot_be_filed_is_refused(name: str, reading: Reading, code: str) -> None:
    with pytest.raises(InputError) as caught:
        written(name, reading)
    assert caught.value.code == code
    assert MARK not in str(caught.value)


@pytest.mark.parametrize("name", SR_FORMATS)
def test_a_sparse_study_is_written(name: str, tmp_path: Path) -> None:
    context = StudyContext(
        study_instance_uid="2.25.1",
        series_instance_uid="2.25.1.1",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.1",
        sop_instance_uid=SOP_UID,
    )
    content = written(name, Reading(full_report(), context))
    assert parsed(content).AccessionNumber == ""
    assert dciodvfy_errors(content, tmp_path) == []


@pytest.mark.parametrize("name", SR_FORMATS)
def test_a_deidentified_document_holds_nothing_of_the_patient(name: str, tmp_path: Path) -> None:
    content = written(name, deidentify(full_reading(), b"k" * 32))
    document = parsed(content)
    for value in (MARK, "19010203", "19990807", "101112", SOP_UID):
        assert value.encode() not in content
    assert document.StudyInstanceUID != "2.25.1"
    assert document.PatientIdentityRemoved == "YES"
    methods = [item.CodeValue for item in document.DeidentificationMethodCodeSequence]
    assert methods == ["113100", "113104", "113109"]
    assert dciodvfy_errors(content, tmp_path) == []
