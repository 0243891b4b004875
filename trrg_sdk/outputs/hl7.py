r"""HL7 v2.5.1 ORU^R01: the draft as a preliminary result, for an order system that speaks neither DICOM nor FHIR.

    MSH  UTF-8 (MSH-18)
    PID  identifier with its issuer, name in each of its writings, birth date, sex
    OBR  18748-4, accession number (OBR-18), status P (OBR-25)
    NTE  what a reader has to know first
    OBX  the study's UID
    OBX  TX a sentence, its verdict and evidence in an NTE below it
    OBX  NM a clue's probability and CWE present or absent, of one sub-identifier (OBX-4), status P

Segments end with a carriage return, as the standard has it; MLLP framing is the sender's. Built, checked and written by
``hl7apy``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from trrg_sdk.context import StudyContext
from trrg_sdk.errors import InputError
from trrg_sdk.outputs import coding, missing_package, text
from trrg_sdk.outputs.coding import Coding, clue_coding, presence
from trrg_sdk.outputs.identity import (
    MANUFACTURER,
    content_time,
    device_uuid,
    require_context,
    result_uid,
    result_uuid,
    to_uid,
)
from trrg_sdk.reading import Reading
from trrg_sdk.report import ClueScore, Sentence

NAME = "hl7"
EXTENSION = ".hl7"
SHOWS_IMAGE = False

_STUDY_UID = Coding("110180", "DCM", "Study Instance UID")
_ESCAPES = str.maketrans({"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"})
_UNNAMED = "^^^^^^U"  # HL7 table 0200: unspecified; the field is required
_WRITINGS = "AIP"  # HL7 table 4000: alphabetic, ideographic, phonetic, the order of DICOM's groups


class _Result(NamedTuple):
    """One OBX and the notes below it; every value is escaped."""

    kind: str
    concept: Coding
    sub_id: str
    value: str
    units: str = ""
    notes: tuple[str, ...] = ()


def render(reading: Reading) -> bytes:
    """UTF-8 text of one message.

    Raises:
        InputError: The input was no DICOM file or lacks its UIDs, or HL7 does not allow a value (``not_hl7``).
    """
    from hl7apy.consts import VALIDATION_LEVEL
    from hl7apy.core import Message
    from hl7apy.exceptions import HL7apyException

    context = require_context(reading, NAME)
    try:
        message = Message("ORU_R01", version="2.5.1", validation_level=VALIDATION_LEVEL.STRICT)
        _fill(message.msh, _header(reading))
        whole = message.add_group("ORU_R01_PATIENT_RESULT")
        _fill(whole.add_group("ORU_R01_PATIENT").add_segment("PID"), _patient(context))
        order = whole.add_group("ORU_R01_ORDER_OBSERVATION")
        _fill(order.add_segment("OBR"), _order(reading, context))
        _notes(order, _first_words(reading))
        for number, result in enumerate(_results(reading, context), start=1):
            _observe(order, result, number, reading)
        message.validate()
        return str(message.to_er7()).encode()
    except (HL7apyException, ValueError) as error:  # it checks dates with bare ValueErrors that hold them
        raise InputError(
            f"the report does not make a valid HL7 message ({type(error).__name__}); take another format",
            code="not_hl7",
        ) from None


def unavailable_reason() -> str | None:
    """What has to be installed, or None."""
    return missing_package("hl7apy", extra="hl7", output=NAME)


def escape(value: str) -> str:
    """The text with HL7's delimiters escaped and without control characters."""
    return text.printable(value).translate(_ESCAPES)


def _header(reading: Reading) -> dict[int, str]:
    moment = content_time(reading)
    return {
        3: escape(MANUFACTURER),
        4: escape(reading.report.provenance.bundle_id),
        7: moment.strftime("%Y%m%d%H%M%S%z"),
        9: "ORU^R01^ORU_R01",
        10: result_uuid(NAME, reading).hex[:20],  # the same for the same result, so that a resent one is recognised
        11: "P",
        12: "2.5.1",
        18: "UNICODE UTF-8",
    }


def _patient(context: StudyContext) -> dict[int, str]:
    return {
        1: "1",
        3: f"{escape(context.patient_id)}^^^{escape(context.issuer_of_patient_id)}",
        5: "~".join(_names(context.patient_name)) or _UNNAMED,
        7: context.patient_birth_date,
        8: context.patient_sex,
    }


def _names(name: str) -> Iterable[str]:
    """DICOM PN as repetitions of HL7 XPN: one for each way of writing, suffix and prefix exchanged."""
    for writing, group in zip(_WRITINGS, name.split("="), strict=False):
        if group.strip("^ "):
            family, given, middle, prefix, suffix = map(escape, (group.split("^") + [""] * 5)[:5])
            yield f"{family}^{given}^{middle}^{suffix}^{prefix}^^L^{writing}"


def _order(reading: Reading, context: StudyContext) -> dict[int, str]:
    return {
        1: "1",
        3: f"{result_uid(NAME, reading)}^{escape(MANUFACTURER)}",
        4: _coded(coding.REPORT),
        7: _study_time(context),
        18: escape(context.accession_number),
        22: content_time(reading).strftime("%Y%m%d%H%M%S%z"),
        24: "RAD",
        25: "P",
    }


def _first_words(reading: Reading) -> tuple[str, ...]:
    report = reading.report
    return (text.BANNER, report.provenance.intended_use, *text.warnings(report), *report.notes)


def _results(reading: Reading, context: StudyContext) -> Iterable[_Result]:
    report = reading.report
    yield _Result("ST", _STUDY_UID, "", context.study_instance_uid)
    for sentence in report.sentences:
        yield _sentence(sentence)
    for number, clue in enumerate(report.clues, start=1):
        yield from _clue(clue, number)
    for omission in report.omissions:
        yield _Result("TX", coding.OMISSIONS, "", escape(text.describe_clue(omission)))


def _sentence(sentence: Sentence) -> _Result:
    concept = coding.IMPRESSION if sentence.section == "impression" else coding.FINDING
    support = "; ".join(text.describe_clue(evidence) for evidence in sentence.evidence)
    verdict = coding.VERDICTS[sentence.verdict].meaning
    return _Result("TX", concept, "", escape(sentence.text), notes=(f"{verdict}: {support}" if support else verdict,))


def _clue(clue: ClueScore, number: int) -> Iterable[_Result]:
    concept = clue_coding(clue.name)
    forced = " Set by the caller." if clue.forced else ""
    note = f"{coding.PROBABILITY.meaning}; counts as present from {clue.threshold:.6g} on.{forced}"
    probability = f"{clue.probability:.6f}".rstrip("0").rstrip(".")
    yield _Result("NM", concept, str(number), probability, _coded(coding.NO_UNITS), (note,))
    yield _Result("CWE", concept, str(number), _coded(presence(clue.present)))


def _observe(order: Any, result: _Result, number: int, reading: Reading) -> None:
    group = order.add_group("ORU_R01_OBSERVATION")
    made_by = f"{to_uid(device_uuid(reading.report.provenance))}^{escape(MANUFACTURER)}"
    fields = {
        1: str(number),
        2: result.kind,
        3: _coded(result.concept),
        4: result.sub_id,
        5: result.value,
        6: result.units,
        11: "P",
        18: made_by,
    }
    _fill(group.add_segment("OBX"), fields)
    _notes(group, result.notes)


def _notes(group: Any, notes: Sequence[str]) -> None:
    for number, note in enumerate(notes, start=1):
        _fill(group.add_segment("NTE"), {1: str(number), 3: escape(note)})


def _fill(segment: Any, fields: dict[int, str]) -> None:
    """Set fields by number; ``~`` parts repetitions."""
    name = segment.name.lower()
    for number, value in fields.items():
        for repetition in value.split("~") if value else ():
            field = segment.add_field(f"{name}_{number}") if "~" in value else None
            if field is None:
                setattr(segment, f"{name}_{number}", repetition)
            else:
                field.value = repetition


def _study_time(context: StudyContext) -> str:
    """HL7 DTM; it has four digits of a second's fraction, DICOM six."""
    if not context.study_date:
        return ""
    clock, _, fraction = context.study_time.partition(".")
    fraction = f".{fraction[:4]}" if fraction else ""
    return context.study_date + clock + fraction + (context.timezone_offset if clock else "")


def _coded(code: Coding) -> str:
    return f"{escape(code.value)}^{escape(code.meaning)}^{code.scheme}"
