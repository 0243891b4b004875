"""HL7 messages: two libraries parse them back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from tests.sdk.chest_dicom import MARK
from tests.sdk.handmade_reports import MADE_AT, SOP_UID, full_context, full_reading, full_report
from tests.sdk.names import NAMES
from trrg_sdk.context import StudyContext
from trrg_sdk.errors import InputError
from trrg_sdk.outputs import open_output
from trrg_sdk.outputs.deidentify import deidentify
from trrg_sdk.reading import Reading

pytest.importorskip("hl7apy", reason="needs the extra hl7")


def written(reading: Reading | None = None) -> str:
    return open_output("hl7").render(reading or full_reading()).decode()


def parsed(reading: Reading | None = None) -> Any:
    """The message as python-hl7 reads it, which shares no code with what wrote it."""
    hl7 = pytest.importorskip("hl7", reason="needs the extra dev")
    return hl7.parse(written(reading))


def test_hl7apy_validates_what_it_reads_back() -> None:
    from hl7apy.consts import VALIDATION_LEVEL
    from hl7apy.parser import parse_message

    message = parse_message(written(), validation_level=VALIDATION_LEVEL.STRICT)
    assert message.validate()
    assert message.to_er7() == written()


def test_head_and_order_say_preliminary() -> None:
    message, context = parsed(), full_context()
    msh, obr, pid = message.segment("MSH"), message.segment("OBR"), message.segment("PID")
    assert str(msh[9]) == "ORU^R01^ORU_R01"
    assert str(msh[12]) == "2.5.1"
    assert str(msh[18]) == "UNICODE UTF-8"
    assert str(msh[7]) == "20260304050607+0000"
    assert len(str(msh[10])) == 20
    assert str(obr[25]) == "P"
    assert str(obr[18]) == context.accession_number
    assert str(obr[4]).startswith("18748-4^")
    assert str(pid[3]) == f"{context.patient_id}^^^{context.issuer_of_patient_id}"
    assert (str(pid[7]), str(pid[8])) == ("19010203", "F")
    assert {str(obx[11]) for obx in message.segments("OBX")} == {"P"}


def test_sentences_and_clues_are_results() -> None:
    message, report = parsed(), full_report()
    results = message.segments("OBX")
    texts = [
        message.unescape(str(obx[5])) for obx in results if str(obx[3]).endswith(("Finding^DCM", "Impression^DCM"))
    ]
    assert texts == [sentence.text for sentence in report.sentences]
    numbers = [float(str(obx[5])) for obx in results if str(obx[2]) == "NM"]
    assert numbers == [clue.probability for clue in report.clues]
    present = [str(obx[5]).split("^")[1] for obx in results if str(obx[2]) == "CWE"]
    assert present == ["Present" if clue.present else "Absent" for clue in report.clues]
    assert [int(str(obx[1])) for obx in results] == list(range(1, len(results) + 1))
    notes = [message.unescape(str(note[3])) for note in message.segments("NTE")]
    assert notes[0].startswith("DRAFT")
    assert any(note.startswith("Contradicted: Edema 0.88 forced") for note in notes)


@pytest.mark.parametrize("script", NAMES)
def test_names_of_every_script_survive(script: str) -> None:
    name = NAMES[script][1]
    pid = parsed(full_reading(patient_name=name)).segment("PID")
    back = ["^".join(str(part) for part in repetition[:2]).rstrip("^") for repetition in pid[5]]
    assert back == [group for group in name.split("=") if group]


def test_prefix_and_suffix_change_places() -> None:
    (name,) = parsed(full_reading(patient_name="Doe^Jane^Mary^Dr^Jr")).segment("PID")[5]
    assert [str(part) for part in name] == ["Doe", "Jane", "Mary", "Jr", "Dr", "", "L", "A"]


@pytest.mark.parametrize("text", ["a|b", "a^b", "a&b", "a~b", "a\\b", "\\F\\ | \\.br\\", "a\rOBX|99|b"])
def test_delimiters_in_a_text_stay_text(text: str) -> None:
    report = full_report()
    sentence = dataclasses.replace(report.sentences[0], text=text)
    reading = dataclasses.replace(full_reading(), report=dataclasses.replace(report, sentences=(sentence,)))
    message = parsed(reading)
    (obx,) = [obx for obx in message.segments("OBX") if str(obx[3]).endswith("Finding^DCM")]
    assert message.unescape(str(obx[5])) == text.replace("\r", "\N{REPLACEMENT CHARACTER}")


def test_the_same_reading_is_the_same_message() -> None:
    assert written() == written()
    later = written(dataclasses.replace(full_reading(), made_at=MADE_AT.replace(hour=9)))
    assert later.replace("20260304090607", "20260304050607") == written()


def test_the_fraction_of_a_second_is_cut_to_what_hl7_has() -> None:
    reading = full_reading(study_time="165447.788280", timezone_offset="+0100")
    assert str(parsed(reading).segment("OBR")[7]) == "19990807165447.7882+0100"


def test_a_value_that_hl7_refuses_is_not_shown() -> None:
    with pytest.raises(InputError) as caught:
        written(full_reading(patient_birth_date="19991399"))
    assert caught.value.code == "not_hl7"
    assert "19991399" not in str(caught.value)


def test_a_sparse_study_is_written() -> None:
    context = StudyContext(
        study_instance_uid="2.25.1", series_instance_uid="2.25.2", sop_class_uid="1.2", sop_instance_uid=SOP_UID
    )
    assert str(parsed(Reading(full_report(), context)).segment("OBR")[25]) == "P"


def test_a_deidentified_one_holds_nothing_of_the_patient() -> None:
    text = written(deidentify(full_reading(), b"k" * 32))
    for value in (MARK, "19010203", "19990807", SOP_UID):
        assert value not in text


@pytest.mark.parametrize(
    ("reading", "code"),
    [
        (lambda: Reading(full_report()), "no_dicom_context"),
        (lambda: full_reading(unreadable=("PatientID",)), "bad_value"),
    ],
    ids=["array", "damaged identifier"],
)
def test_what_cannot_be_filed_is_refused(reading: Callable[[], Reading], code: str) -> None:
    with pytest.raises(InputError) as caught:
        written(reading())
    assert caught.value.code == code
