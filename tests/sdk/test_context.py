from __future__ import annotations

from typing import Any

import pytest

from tests.sdk.chest_dicom import MARK, chest_dataset
from tests.sdk.dicom_builder import to_bytes
from tests.sdk.names import NAMES
from trrg_sdk.context import StudyContext
from trrg_sdk.dicom import Radiograph, load
from trrg_sdk.dicom_tags import quiet


def context_of(**elements: Any) -> StudyContext:
    return loaded(**elements).context or pytest.fail("no context")


def loaded(**elements: Any) -> Radiograph:
    return load(to_bytes(chest_dataset(**elements)))


@pytest.mark.parametrize("script", NAMES)
def test_names_of_every_script_are_decoded(script: str) -> None:
    charset, name = NAMES[script]
    context = context_of(SpecificCharacterSet=charset, PatientName=name, ReferringPhysicianName=name)
    assert context.patient_name == name.rstrip("=") or context.patient_name == name
    assert context.referring_physician_name == context.patient_name
    assert context.unreadable == ()
    assert context.notes == ()


def test_the_study_is_read() -> None:
    context = context_of(StudyID="S1", StudyTime="101112.5", PatientSex="F", IssuerOfPatientID="SITE")
    assert context.patient_id == MARK
    assert (context.study_id, context.study_time, context.patient_sex) == ("S1", "101112.5", "F")
    assert context.issuer_of_patient_id == "SITE"
    assert context.study_date == "19990807"
    assert context.sop_instance_uid == "2.25.1001"
    assert context.series_instance_uid == "2.25.1.1"


def test_nothing_shows_a_value() -> None:
    image = loaded()
    assert MARK not in repr(image.context)
    assert MARK not in repr(image)
    assert "2.25.1001" not in repr(image.context)


def with_raw_name(raw: bytes, *, charset: str) -> Radiograph:
    """A file whose bytes of the name are not what its character set promises."""
    with quiet():
        content = to_bytes(chest_dataset(SpecificCharacterSet=charset, PatientName="?" * len(raw)))
    assert content.count(b"?" * len(raw)) == 1
    return load(content.replace(b"?" * len(raw), raw))


def test_a_name_that_does_not_fit_its_character_set_is_not_repaired() -> None:
    image = with_raw_name(b"M\xfcller^Karl", charset="ISO_IR 192")
    assert image.context is not None
    assert image.context.unreadable == ("PatientName",)


@pytest.mark.parametrize("value", ["x" * 65, "a\\b", "a\rb"])
def test_an_identifier_that_its_type_does_not_allow_is_not_repaired(value: str) -> None:
    with quiet():
        content = to_bytes(chest_dataset(PatientID=value))
    context = load(content).context
    assert context is not None
    assert context.unreadable == ("PatientID",)


@pytest.mark.parametrize("charset", ["", "ISO_IR 999"])
def test_an_undeclared_name_is_latin_1_and_the_report_says_so(charset: str) -> None:
    image = with_raw_name(b"M\xfcller^Karl", charset=charset)
    assert image.context is not None
    assert image.context.patient_name == "Müller^Karl"
    assert any("Latin-1" in note for note in image.notes)
    assert not any("ller" in note for note in image.notes)


@pytest.mark.parametrize(
    ("keyword", "value", "attribute"),
    [
        ("PatientBirthDate", "N/A     ", "patient_birth_date"),
        ("PatientBirthDate", "19991399", "patient_birth_date"),
        ("StudyTime", "noon", "study_time"),
        ("StudyTime", "250000", "study_time"),
        ("PatientSex", "MALE", "patient_sex"),
        ("AccessionNumber", "A" * 17, "accession_number"),
    ],
)
def test_what_its_type_does_not_allow_is_left_out_with_a_note(keyword: str, value: str, attribute: str) -> None:
    with quiet():
        content = to_bytes(chest_dataset(**{keyword: value}))
    image = load(content)
    assert getattr(image.context, attribute) == ""
    assert any(keyword in note for note in image.notes)
    assert not any(value.strip() in note for note in image.notes)


def test_an_array_is_nobodys() -> None:
    assert load(chest_dataset().pixel_array).context is None
