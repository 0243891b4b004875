"""DICOM Enhanced SR of the draft, after TID 2000 "Basic Diagnostic Imaging Report" (PS3.16).

    CONTAINER Diagnostic Imaging Report
      HAS OBS CONTEXT   the device: program, bundle, SHA-256 of its manifest (TID 1002, 1004)
      CONTAINS          About this draft: intended use, forced clues, what of the gate was overridden, notes
      CONTAINS          Findings, Impressions: one TEXT a sentence
                          HAS PROPERTIES  Verdict
                          INFERRED FROM   the image
                          INFERRED FROM   NUM clue, its probability; HAS PROPERTIES present or absent, threshold
                          INFERRED FROM   SCOORD around the patch where the clue is strongest
      CONTAINS          Perceived, but not stated: one NUM an omission

It is unverified, partial and preliminary, and stays so: a radiologist's report is another document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from trrg_sdk.context import StudyContext
from trrg_sdk.dicom_tags import quiet
from trrg_sdk.outputs import coding, missing_package
from trrg_sdk.outputs.coding import Coding
from trrg_sdk.outputs.dicom_document import Kind, head, image_reference, to_bytes
from trrg_sdk.outputs.identity import MANUFACTURER, device_name, device_uuid, require_context, to_uid
from trrg_sdk.outputs.text import BANNER, printable, warnings
from trrg_sdk.reading import Picture, Reading
from trrg_sdk.report import Evidence, HeatPeak, Omission, Report, Sentence

if TYPE_CHECKING:
    from highdicom.sr import ContentItem, ContentSequence, ObservationContext
    from pydicom.dataset import Dataset
    from pydicom.sr.coding import Code

NAME = "sr"
EXTENSION = ".sr.dcm"
SHOWS_IMAGE = True

_KIND = Kind(NAME, "1.2.840.10008.5.1.4.1.1.88.22", "SR", 9901, "TRRG draft report")


def render(reading: Reading) -> bytes:
    """A DICOM file in the study of the image.

    Raises:
        InputError: The input was no DICOM file, or one without the UIDs that the report refers to.
    """
    context = require_context(reading, NAME)
    with quiet():
        from highdicom.sr import EnhancedSR

        placed = head(reading, _KIND)
        document = EnhancedSR([evidence_of(context)], _content(reading, context), **series_of(placed))
        return finished(document, placed)


def unavailable_reason() -> str | None:
    """What has to be installed, or None."""
    return missing_package("highdicom", extra="sr", output=NAME)


def finished(document: Dataset, placed: Dataset) -> bytes:
    """The bytes of a highdicom document, with our ``head`` in place of its own."""
    document.update(placed)
    document.pop("ContributingEquipmentSequence", None)  # highdicom's own entry, which holds the time of the call
    return to_bytes(document)


def code(coding_: Coding) -> Code:
    """The library's form of a code."""
    from pydicom.sr.coding import Code

    return Code(coding_.value, coding_.scheme, coding_.meaning)


def evidence_of(context: StudyContext) -> Dataset:
    """The image, as highdicom wants to see it; the patient is written by ``head``.

    highdicom refuses names without a caret, which real patients have.
    """
    image = image_reference(context)
    for keyword in ("PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(image, keyword, "")
    image.PatientName = image.StudyDate = image.StudyTime = None
    return image


def series_of(placed: Dataset) -> dict[str, Any]:
    """The arguments of highdicom that place a document where ``head`` says."""
    return {
        "series_instance_uid": str(placed.SeriesInstanceUID),
        "series_number": int(placed.SeriesNumber),
        "sop_instance_uid": str(placed.SOPInstanceUID),
        "instance_number": int(placed.InstanceNumber),
        "manufacturer": str(placed.Manufacturer),
    }


def observer(report: Report) -> ObservationContext:
    """TID 1001: the program with this bundle looked, and nobody else."""
    from highdicom.sr import CodedConcept, DeviceObserverIdentifyingAttributes, ObservationContext, ObserverContext

    made = report.provenance
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=CodedConcept.from_code(code(coding.DEVICE)),
            observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                uid=to_uid(device_uuid(made)),
                name=device_name(report),
                manufacturer_name=MANUFACTURER,
                model_name=made.bundle_id,
                serial_number=made.manifest_sha256,
            ),
        )
    )


def about(report: Report) -> Iterator[str]:
    """What a reader has to know before the first sentence."""
    yield BANNER
    yield printable(report.provenance.intended_use)
    yield from map(printable, (*warnings(report), *report.notes))


def headed(section: str) -> tuple[Coding, Coding]:
    """Heading (CID 7001) and element (CID 7002) of a section; what has no section is a finding."""
    if section == "impression":
        return coding.IMPRESSIONS, coding.IMPRESSION
    return coding.FINDINGS, coding.FINDING


def sections(report: Report) -> list[tuple[str, list[Sentence]]]:
    """The sentences under their headings, in order."""
    return [(name, list(members)) for name, members in groupby(report.sentences, key=lambda item: item.section)]


def container(heading: Coding, children: Iterable[ContentItem], *, template: str | None = None) -> ContentItem:
    """A container with its content; with a template it is the root."""
    from highdicom.sr import ContainerContentItem, ContentSequence, RelationshipTypeValues

    contains = None if template else RelationshipTypeValues.CONTAINS
    item = ContainerContentItem(
        code(heading), is_content_continuous=False, template_id=template, relationship_type=contains
    )
    item.ContentSequence = ContentSequence(list(children))
    return item


def text_item(concept: Coding, text: str, *, relation: str = "CONTAINS") -> ContentItem:
    """One TEXT."""
    from highdicom.sr import TextContentItem

    return TextContentItem(code(concept), text or " ", relationship_type=relation)


def code_item(concept: Coding, value: Coding, *, relation: str) -> ContentItem:
    """One CODE."""
    from highdicom.sr import CodeContentItem

    return CodeContentItem(code(concept), code(value), relationship_type=relation)


def image_item(context: StudyContext, *, relation: str) -> ContentItem:
    """A reference to the reported image."""
    from highdicom.sr import ImageContentItem

    return ImageContentItem(
        code(coding.SOURCE), context.sop_class_uid, context.sop_instance_uid, relationship_type=relation
    )


def language() -> ContentItem:
    """TID 1204: what is written is English."""
    concept = Coding("121049", "DCM", "Language of Content Item and Descendants")
    return code_item(concept, Coding("en", "RFC5646", "English"), relation="HAS CONCEPT MOD")


def root(reading: Reading, children: Iterable[ContentItem]) -> ContentItem:
    """The document of TID 2000."""
    from highdicom.sr import ContentSequence

    item = container(coding.REPORT, children, template="2000")
    content: ContentSequence = item.ContentSequence
    item.ContentSequence = ContentSequence([language(), *observer(reading.report), *content])
    return item


def _content(reading: Reading, context: StudyContext) -> ContentItem:
    report = reading.report
    parts = [container(coding.ABOUT, (text_item(coding.COMMENT, line) for line in about(report)))]
    for section, members in sections(report):
        heading, element = headed(section)
        parts.append(container(heading, (_sentence(item, element, reading, context) for item in members)))
    if report.omissions:
        parts.append(
            container(coding.OMISSIONS, (_perceived(item, "CONTAINS", reading, context) for item in report.omissions))
        )
    return root(reading, parts)


def _sentence(sentence: Sentence, element: Coding, reading: Reading, context: StudyContext) -> ContentItem:
    from highdicom.sr import ContentSequence

    item = text_item(element, printable(sentence.text))
    children = [
        code_item(coding.VERDICT, coding.VERDICTS[sentence.verdict], relation="HAS PROPERTIES"),
        image_item(context, relation="INFERRED FROM"),
    ]
    for evidence in sentence.evidence:
        children.append(_perceived(evidence, "INFERRED FROM", reading, context))
        if evidence.probability >= evidence.threshold:  # where an absent clue is least absent says nothing
            children += _where(evidence.heat_peak, reading.picture, context)
    item.ContentSequence = ContentSequence(children)
    return item


def _perceived(clue: Evidence | Omission, relation: str, reading: Reading, context: StudyContext) -> ContentItem:
    """A clue's probability as NUM, with what makes it present."""
    from highdicom.sr import ContentSequence

    item = _number(coding.clue_coding(clue.clue), clue.probability, relation=relation)
    present = coding.presence(clue.probability >= clue.threshold)
    children = [
        code_item(coding.PRESENCE, present, relation="HAS PROPERTIES"),
        _number(coding.THRESHOLD, clue.threshold, relation="HAS PROPERTIES"),
    ]
    if clue.forced:
        children.append(text_item(coding.FORCED, "yes", relation="HAS PROPERTIES"))
    if relation == "CONTAINS":  # an omission has no sentence that names the image
        children.append(image_item(context, relation="INFERRED FROM"))
        children += _where(clue.heat_peak, reading.picture, context)
    item.ContentSequence = ContentSequence(children)
    return item


def _number(concept: Coding, value: float, *, relation: str) -> ContentItem:
    from highdicom.sr import NumContentItem

    return NumContentItem(code(concept), round(value, 6), code(coding.NO_UNITS), relationship_type=relation)


def _where(peak: HeatPeak | None, picture: Picture | None, context: StudyContext) -> list[ContentItem]:
    """A closed line around the patch of a peak, in the image's pixels; nothing for a forced clue."""
    import numpy as np
    from highdicom.sr import ContentSequence, ScoordContentItem

    if peak is None or picture is None:
        return []
    top, left, bottom, right = picture.patch(peak.row, peak.column, rows=peak.rows, columns=peak.columns)
    if bottom <= top or right <= left:  # the patch lies in the padding beside the image
        return []
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])
    item = ScoordContentItem(code(coding.PEAK), "POLYLINE", corners, relationship_type="INFERRED FROM")
    item.ContentSequence = ContentSequence([image_item(context, relation="SELECTED FROM")])
    return [item]
