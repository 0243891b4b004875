"""DICOM Basic Text SR of the draft: the lowest common denominator, for viewers that know no numbers in a report.

The tree is that of ``trrg_sdk.outputs.dicom_sr``; a clue is a line of text, because Basic Text SR has no NUM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trrg_sdk.context import StudyContext
from trrg_sdk.dicom_tags import quiet
from trrg_sdk.outputs import coding, dicom_sr, missing_package
from trrg_sdk.outputs.coding import Coding
from trrg_sdk.outputs.dicom_document import Kind, head
from trrg_sdk.outputs.identity import require_context
from trrg_sdk.outputs.text import describe_clue, printable
from trrg_sdk.reading import Reading
from trrg_sdk.report import Sentence

if TYPE_CHECKING:
    from highdicom.sr import ContentItem

NAME = "sr-basic"
EXTENSION = ".sr-basic.dcm"
SHOWS_IMAGE = False

_KIND = Kind(NAME, "1.2.840.10008.5.1.4.1.1.88.11", "SR", 9902, "TRRG draft report, text only")


def render(reading: Reading) -> bytes:
    """A DICOM file in the study of the image.

    Raises:
        InputError: The input was no DICOM file, or one without the UIDs that the report refers to.
    """
    context = require_context(reading, NAME)
    with quiet():
        from highdicom.sr import EnhancedSR

        # highdicom has no class for Basic Text SR. Both have the same modules (PS3.3 A.35.1, A.35.2), and the content
        # here keeps to the value types and relationships of the smaller one.
        placed, evidence = head(reading, _KIND), dicom_sr.evidence_of(context)
        document = EnhancedSR([evidence], _content(reading, context), **dicom_sr.series_of(placed))
        return dicom_sr.finished(document, placed)


def unavailable_reason() -> str | None:
    """What has to be installed, or None."""
    return missing_package("highdicom", extra="sr", output=NAME)


def _content(reading: Reading, context: StudyContext) -> ContentItem:
    report = reading.report
    lines = (dicom_sr.text_item(coding.COMMENT, line) for line in dicom_sr.about(report))
    parts = [dicom_sr.container(coding.ABOUT, lines)]
    for section, members in dicom_sr.sections(report):
        heading, element = dicom_sr.headed(section)
        parts.append(dicom_sr.container(heading, (_sentence(item, element, context) for item in members)))
    if report.omissions:
        missed = (dicom_sr.text_item(coding.FINDING, describe_clue(item)) for item in report.omissions)
        parts.append(dicom_sr.container(coding.OMISSIONS, missed))
    return dicom_sr.root(reading, parts)


def _sentence(sentence: Sentence, element: Coding, context: StudyContext) -> ContentItem:
    from highdicom.sr import ContentSequence

    item = dicom_sr.text_item(element, printable(sentence.text))
    verdict = dicom_sr.code_item(coding.VERDICT, coding.VERDICTS[sentence.verdict], relation="HAS PROPERTIES")
    image = dicom_sr.image_item(context, relation="INFERRED FROM")
    support = (
        dicom_sr.text_item(coding.PROBABILITY, describe_clue(evidence), relation="INFERRED FROM")
        for evidence in sentence.evidence
    )
    item.ContentSequence = ContentSequence([verdict, image, *support])
    return item
