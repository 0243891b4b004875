"""DICOM Comprehensive 3D SR of the clues, after TID 1500 "Measurement Report" (PS3.16), for programs.

One measurement group (TID 1501) a clue: its code as the finding, TID 4019 for what computed it, the probability as a
measurement and present or absent as a qualitative evaluation. The draft's text is in
``trrg_sdk.outputs.dicom_sr``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trrg_sdk.context import StudyContext
from trrg_sdk.dicom_tags import quiet
from trrg_sdk.outputs import coding, dicom_sr, missing_package
from trrg_sdk.outputs.coding import clue_coding, presence
from trrg_sdk.outputs.dicom_document import Kind, head
from trrg_sdk.outputs.dicom_sr import code
from trrg_sdk.outputs.identity import MANUFACTURER, require_context, result_uid
from trrg_sdk.reading import Reading
from trrg_sdk.report import ClueScore

if TYPE_CHECKING:
    from highdicom.sr import AlgorithmIdentification, MeasurementReport, MeasurementsAndQualitativeEvaluations

NAME = "sr-3d"
EXTENSION = ".sr-3d.dcm"
SHOWS_IMAGE = False

_KIND = Kind(NAME, "1.2.840.10008.5.1.4.1.1.88.34", "SR", 9903, "TRRG clue scores")


def render(reading: Reading) -> bytes:
    """A DICOM file in the study of the image.

    Raises:
        InputError: The input was no DICOM file, or one without the UIDs that the report refers to.
    """
    context = require_context(reading, NAME)
    with quiet():
        from highdicom.sr import Comprehensive3DSR

        placed, evidence = head(reading, _KIND), dicom_sr.evidence_of(context)
        document = Comprehensive3DSR([evidence], _measurements(reading, context)[0], **dicom_sr.series_of(placed))
        return dicom_sr.finished(document, placed)


def unavailable_reason() -> str | None:
    """What has to be installed, or None."""
    return missing_package("highdicom", extra="sr", output=NAME)


def _measurements(reading: Reading, context: StudyContext) -> MeasurementReport:
    from highdicom.sr import CodedConcept, LanguageOfContentItemAndDescendants, MeasurementReport

    groups = [_group(clue, reading, context) for clue in reading.report.clues]
    return MeasurementReport(
        observation_context=dicom_sr.observer(reading.report),
        procedure_reported=code(coding.PLAIN_RADIOGRAPHY),
        imaging_measurements=groups,
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(
            CodedConcept("en", "RFC5646", "English")
        ),
    )


def _group(clue: ClueScore, reading: Reading, context: StudyContext) -> MeasurementsAndQualitativeEvaluations:
    from highdicom.sr import (
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
    )

    concept = clue_coding(clue.name)
    evaluations = [QualitativeEvaluation(code(concept), code(presence(clue.present)))]
    if clue.forced:
        evaluations.append(QualitativeEvaluation(code(coding.FORCED), code(coding.PRESENT)))
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(result_uid(f"{NAME}/{clue.name}", reading), concept.meaning),
        finding_type=code(concept),
        algorithm_id=_algorithm(reading),
        measurements=[
            Measurement(code(coding.PROBABILITY), clue.probability, code(coding.NO_UNITS)),
            Measurement(code(coding.THRESHOLD), clue.threshold, code(coding.NO_UNITS)),
        ],
        qualitative_evaluations=evaluations,
        source_images=[SourceImageForMeasurementGroup(context.sop_class_uid, context.sop_instance_uid)],
    )


def _algorithm(reading: Reading) -> AlgorithmIdentification:
    """TID 4019: the bundle is the algorithm, the hash of its manifest its version."""
    from highdicom.sr import AlgorithmIdentification

    made = reading.report.provenance
    overridden = [f"gate overridden: {reason.code}" for reason in reading.report.gate.overridden]
    return AlgorithmIdentification(
        made.bundle_id,
        made.manifest_sha256,
        parameters=[f"trrg-sdk {made.sdk_version}", made.precision, *overridden],
        manufacturer=MANUFACTURER,
    )
