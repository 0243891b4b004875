"""Clue heat maps as a Multi-frame True Color Secondary Capture: one frame a present clue, burnt over the image.

Nothing but a picture, so that every viewer shows it, in the study of the image. A frame is the reported image, reduced
to at most 512 pixels a side with square pixels, the patches' probabilities in colour over it, and a caption that says
which clue, how probable and that it is no finding of a radiologist. When no clue is present, one frame says that; a
clue that was forced has no place in the image and gets none.

Burned In Annotation (0028,0301) speaks of annotation that identifies the patient (PS3.3 C.7.6.1.1), which the captions
do not. It is NO where the image's own file says NO, else YES.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.dicom_tags import quiet
from trrg_sdk.errors import InputError
from trrg_sdk.outputs import coding
from trrg_sdk.outputs.coding import Coding
from trrg_sdk.outputs.dicom_document import Kind, coded, head, to_bytes
from trrg_sdk.outputs.identity import require_context
from trrg_sdk.outputs.overlay import captioned, grey, overlaid
from trrg_sdk.outputs.text import printable, warnings
from trrg_sdk.reading import Picture, Reading
from trrg_sdk.report import ClueScore

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

NAME = "heat"
EXTENSION = ".heat.dcm"
SHOWS_IMAGE = True

_KIND = Kind(NAME, "1.2.840.10008.5.1.4.1.1.7.4", "OT", 9904, "TRRG clue heat maps")
_PURPOSE = Coding("121322", "DCM", "Source image for image processing operation")
_LONGEST_SIDE = 512
_WARNING = "DRAFT by a program, not a diagnosis"


def render(reading: Reading) -> bytes:
    """A DICOM file in the study of the image; it holds the image.

    Raises:
        InputError: The input was no DICOM file or lacks its UIDs, or the reading has no picture (``no_picture``).
    """
    require_context(reading, NAME)
    if reading.picture is None:
        raise InputError("a heat map is drawn over the image, which a stored report does not hold", code="no_picture")
    shown = [clue for clue in reading.report.clues if clue.present and not clue.forced]
    frames = np.stack([_frame(reading.picture, clue) for clue in shown] or [_plain(reading.picture)])
    with quiet():
        dataset = head(reading, _KIND)
        _describe(dataset, reading, shown)
        _pixels(dataset, frames, shown)
        return to_bytes(dataset)


def unavailable_reason() -> None:
    """Nothing is needed."""


def _frame(picture: Picture, clue: ClueScore) -> NDArray[np.uint8]:
    image = overlaid(picture, clue.name, longest_side=_LONGEST_SIDE)
    return captioned(image, f"{printable(clue.name)} {clue.probability:.2f}", _WARNING)


def _plain(picture: Picture) -> NDArray[np.uint8]:
    return captioned(grey(picture, longest_side=_LONGEST_SIDE), "No clue was perceived as present", _WARNING)


def _describe(dataset: Dataset, reading: Reading, shown: list[ClueScore]) -> None:
    """General image, SC and source modules (PS3.3 C.7.6.1, C.8.6)."""
    from pydicom.dataset import Dataset

    context = require_context(reading, NAME)
    source = Dataset()
    source.ReferencedSOPClassUID = context.sop_class_uid
    source.ReferencedSOPInstanceUID = context.sop_instance_uid
    source.PurposeOfReferenceCodeSequence = [coded(_PURPOSE)]
    dataset.SourceImageSequence = [source]
    dataset.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    dataset.ConversionType = "WSD"
    dataset.PatientOrientation = ""
    if not reading.report.gate.overridden:
        dataset.BodyPartExamined = "CHEST"  # the gate lets nothing else pass; it is unpaired, so there is no Laterality
    dataset.BurnedInAnnotation = "NO" if context.burned_in_annotation == "NO" else "YES"
    frames = "; ".join(f"{number}: {clue.name} {clue.probability:.2f}" for number, clue in enumerate(shown, start=1))
    if not context.deidentified:  # the profile removes any
        said = " ".join(("probability of each clue per patch, over the image.", *warnings(reading.report), frames))
        dataset.DerivationDescription = printable(said)[:1024]
    dataset.DerivationCodeSequence = [coded(coding.HEAT_MAP)]


def _pixels(dataset: Dataset, frames: NDArray[np.uint8], shown: list[ClueScore]) -> None:
    """Image pixel, multi-frame and SC multi-frame modules; ``frames``: uint8 (F, H, W, 3)."""
    count, rows, columns, _ = frames.shape
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "RGB"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.NumberOfFrames = count
    if count > 1:  # PS3.3 C.7.6.6: absent for one frame
        dataset.FrameIncrementPointer = 0x00182002
        dataset.FrameLabelVector = [clue.name.replace("\\", " ")[:16] for clue in shown]
    dataset.LossyImageCompression = "00"
    dataset.add_new("PixelData", "OB", frames.tobytes() + b"\0" * (frames.size % 2))
