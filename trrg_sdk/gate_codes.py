"""Every code with which an input is refused: what it says, what to do about it, and whether ``--accept`` overrides it.

This is the whole table, for readers and for the program: nothing else in the package makes up a code (a test looks).
Codes are stable. Words in braces are filled in from the image; where a reader of files raises the error, its own
message says more than the general sentence here.

An override (``trrg report --accept CODE``, ``Reporter(accept=...)``) says: *I looked at this image, and this one reason
does not hold.* It never hides anything: the report then names the code and the sentence in every format. What has no
pixels, no patient or no text to give cannot be overridden; ``never`` says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trrg_sdk.errors import UsageError
from trrg_sdk.report import GateReason

_NO_PIXELS = "there are no pixels to report"
_NOT_THIS_ONE = "it is no refusal: another image of the study was taken"
_NO_OUTPUT = "the format cannot be written without it"
_AGAIN = "Send the file again; if that does not help, export the image again at the modality."


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a code stands for.

    Attributes:
        message: One sentence that a technician understands.
        action: What to do about it.
        never: Why it cannot be overridden; "" when it can.
    """

    message: str
    action: str
    never: str = ""


REFUSALS: Mapping[str, Refusal] = MappingProxyType(
    {
        # What the file says of itself (trrg_sdk.gate).
        "wrong_modality": Refusal(
            "The image is of modality {modality}; only projection radiographs (CR, DX) are reported.",
            "Send the chest radiograph.",
        ),
        "modality_missing": Refusal(
            "The file does not say its modality (0008,0060), and its SOP class leaves it open.",
            "Export the original radiograph; a secondary capture needs Modality CR or DX.",
        ),
        "wrong_object": Refusal(
            "The object is no radiograph (neither CR, DX nor secondary capture), whatever modality it names.",
            "Send the chest radiograph.",
        ),
        "for_processing": Refusal(
            "The image is the detector's raw data (For Processing), which is not meant to be looked at.",
            "Send the image For Presentation.",
        ),
        "wrong_body_part": Refusal(
            "The body part is {part}; only chest radiographs are reported.",
            "Send the chest radiograph, or correct Body Part Examined (0018,0015) if it is one.",
        ),
        "lateral_view": Refusal(
            "The view is {view} (lateral or oblique); only frontal views are reported.",
            "Send the PA or AP view.",
        ),
        "unsupported_view": Refusal(
            "The view is {view}; this bundle was trained on upright and supine {views} views only.",
            "Send one of those views.",
        ),
        "paediatric_age": Refusal(
            "The patient is younger than {least:g} years, the youngest whom this bundle was trained on.",
            "Have it read without a draft; if the age in the file is wrong, correct Patient's Age (0010,1010).",
        ),
        # What the image itself shows (trrg_sdk.gate, trrg_sdk.photometry).
        "too_small": Refusal(
            "The image has {rows} x {columns} pixels; at least {least} in each direction are needed.",
            "Send the original image, no thumbnail.",
        ),
        "mostly_blank": Refusal(
            "Nearly the whole image ({share:.0%}) is plain {colour}: there is nothing to see.",
            "Check the window of the image and that it was transferred whole, then send it again.",
        ),
        "burnt_in_only": Refusal(
            "The image holds writing or lines on a plain ground, and no radiograph.",
            "Send the radiograph itself, no page, label or screen copy of it.",
        ),
        "not_chest_like": Refusal(
            "The image does not look like an upright frontal chest radiograph.",
            "Check that the right image was sent. If it is a chest radiograph, it needs a reader without a draft.",
        ),
        "inverted": Refusal(
            "The grey values look inverted: the lungs are bright and the bones are dark.",
            "Check Photometric Interpretation (0028,0004), or invert the array, and send the image again.",
        ),
        "turned": Refusal(
            "The film looks upside down or turned onto its side.",
            "Turn the image upright at the workstation and send it again.",
        ),
        # What the model's own look at it says (trrg_sdk.distance).
        "unlike_training": Refusal(
            "The image is {far:.2f} times as far from the training films as a chest radiograph may be.",
            "Check that the right image was sent. If it is a chest radiograph, it needs a reader without a draft.",
        ),
        # What cannot be read (trrg_sdk.dicom and what it calls).
        "unreadable": Refusal("The file cannot be opened.", "Check the path, the disk and the rights.", _NO_PIXELS),
        "not_dicom": Refusal("The file is no DICOM file.", "Export the image as DICOM.", _NO_PIXELS),
        "corrupt": Refusal("The structure of the file is broken.", _AGAIN, _NO_PIXELS),
        "too_complex": Refusal("The file holds more than any image does.", "Export the image again.", _NO_PIXELS),
        "no_pixels": Refusal("The object holds no image.", "Send the chest radiograph itself.", _NO_PIXELS),
        "missing_tag": Refusal("A required element is missing.", "Export the image again at the modality.", _NO_PIXELS),
        "bad_value": Refusal("An element cannot be used.", "Export the image again at the modality.", _NO_PIXELS),
        "bad_size": Refusal("The size of the image and its data do not fit.", _AGAIN, _NO_PIXELS),
        "truncated": Refusal("The file is cut off.", _AGAIN, _NO_PIXELS),
        "undecodable": Refusal(
            "The pixels cannot be decoded.",
            "Export the image uncompressed, as JPEG lossless or as JPEG 2000.",
            _NO_PIXELS,
        ),
        "multi_frame": Refusal(
            "The file holds several frames.", "Send a single radiograph.", "which frame is meant is not known"
        ),
        "colour": Refusal(
            "The image is a colour image.",
            "Send the original radiograph, no screen copy.",
            "colours are no grey values of a radiograph",
        ),
        "blank": Refusal(
            "Every pixel has the same value, which is how a failed decoding looks.", _AGAIN, "there is nothing to see"
        ),
        "bad_array": Refusal(
            "The array is no grey image.", "Give a 2-D array of finite numbers, larger is brighter.", _NO_PIXELS
        ),
        "bad_spacing": Refusal(
            "The pixels' height and width are no possible ones.",
            "Correct Pixel Spacing (0028,0030) or Pixel Aspect Ratio (0028,0034).",
            "the image cannot be brought to its shape",
        ),
        # A study as a whole (trrg_sdk.dicom, trrg_sdk.study, trrg_sdk.site.prepare).
        "empty_study": Refusal("The folder holds no DICOM file.", "Give the folder of one study.", _NO_PIXELS),
        "several_studies": Refusal(
            "The folder holds images of several studies.",
            "Give each study its own folder, or take trrg batch.",
            "a report is of one study",
        ),
        "no_frontal": Refusal(
            "The study holds no frontal chest image.",
            "Send the PA or AP view.",
            "accept lateral_view to have a lateral one reported",
        ),
        "too_many_images": Refusal(
            "The first {tried} images cannot be reported; there are {count}.",
            "Send the chest radiograph alone.",
            "none of those that were tried can be reported",
        ),
        # Why another image of the study was taken.
        "other_frontal": Refusal(
            "Another image of the study ({better}) was reported.",
            "Report this image on its own if it is the one you want.",
            _NOT_THIS_ONE,
        ),
        "duplicate": Refusal(
            "The same image is in the study twice; one of them was used.", "None needed.", _NOT_THIS_ONE
        ),
        "derived": Refusal("The image was made from others after the examination.", "None needed.", _NOT_THIS_ONE),
        # What the text and the formats need (trrg_sdk.sentences, trrg_sdk.outputs).
        "empty_report": Refusal(
            "The model wrote no text for this image.", "Have it reported without a draft.", "there is no report"
        ),
        "burned_in": Refusal(
            "Patient data are burned into the pixels, which --deidentify does not clean.",
            "Clean the image first.",
            "the patient would be named",
        ),
        "no_dicom_context": Refusal("The input was no DICOM file.", "Take text, json or html.", _NO_OUTPUT),
        "no_picture": Refusal("A stored report holds no image.", "Report the image again.", _NO_OUTPUT),
        "not_fhir": Refusal("The report makes no valid FHIR bundle.", "Take another format.", _NO_OUTPUT),
        "not_hl7": Refusal("The report makes no valid HL7 message.", "Take another format.", _NO_OUTPUT),
    }
)

ACCEPTABLE = tuple(code for code, refusal in REFUSALS.items() if not refusal.never)
"""Codes that can be overridden, in the order of the table."""


def reason(code: str, **words: object) -> GateReason:
    """The reason of a code.

    Args:
        code: One of the table.
        words: What stands in braces in its sentence.
    """
    refusal = REFUSALS[code]
    return GateReason(code, refusal.message.format(**words), refusal.action)


def accepted(codes: Iterable[str]) -> frozenset[str]:
    """Check the codes that somebody wants to override.

    Raises:
        UsageError: One does not exist, or can never be overridden.
    """
    chosen = frozenset(codes)
    for code in sorted(chosen):
        if code not in REFUSALS:
            raise UsageError(f"accept: there is no code {code!r}; these can be overridden: {', '.join(ACCEPTABLE)}")
        if never := REFUSALS[code].never:
            raise UsageError(
                f"accept: {code} can never be overridden ({never}). {REFUSALS[code].action} "
                f"These can be overridden: {', '.join(ACCEPTABLE)}"
            )
    return chosen
