"""May this image be reported? Every reason why not, in words that a technician can act on.

What the file says of itself is judged first: modality, body part, view. Only an image that passes is looked at, since
a polarity score of a CT slice means nothing. The codes:

    wrong_modality  modality_missing  wrong_object  for_processing     the kind of image
    wrong_body_part  lateral_view  unsupported_view                    what was taken
    too_small  blank                                                   too little to see
    not_chest_like  inverted  turned                                   what the image itself shows
"""

from __future__ import annotations

from trrg_sdk.dicom import Radiograph, is_lateral
from trrg_sdk.photometry import Look, look
from trrg_sdk.report import GateReason

MIN_SIDE = 128  # pixels; below, not even a large effusion is certain

_RADIOGRAPHY = ("CR", "DX", "RG")  # PS3.3 C.7.3.1.1.1
_CR = "1.2.840.10008.5.1.4.1.1.1"
_DX = "1.2.840.10008.5.1.4.1.1.1.1"
_DX_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_CHEST = ("CHEST", "THORAX", "TORAX", "LUNG")
_DECUBITUS = ("LLD", "RLD", "DECUBITUS")

# Limits of the image's own scores; what they cost and find is measured by tests/benchmarks/gate_photometry.py.
_MAX_FLAT = 0.9
_MAX_DISTANCE = 2.1
_MAX_DETAIL = 0.85
_MIN_POLARITY = 1.0
_MIN_UPRIGHT = -0.5

_NOT_CHEST_LIKE = GateReason(
    "not_chest_like",
    "The image does not look like an upright frontal chest radiograph.",
    "Check that the right image was sent. If it is a chest radiograph, it needs a reader without a draft.",
)
_INVERTED = GateReason(
    "inverted",
    "The grey values look inverted: the lungs are bright and the bones are dark.",
    "Check Photometric Interpretation (0028,0004), or invert the array, and send the image again.",
)
_TURNED = GateReason(
    "turned",
    "The film looks upside down or turned onto its side.",
    "Turn the image upright at the workstation and send it again.",
)


def check(radiograph: Radiograph) -> tuple[GateReason, ...]:
    """Judge one image.

    Args:
        radiograph: As loaded. What its file does not say (an array says nothing) is left to the image itself.

    Returns:
        All reasons against reporting it, the most telling first; empty when it may be reported.
    """
    reasons = [*declared(radiograph), *_size(radiograph)]
    return tuple(reasons or judge(look(radiograph.pixels)))


def declared(radiograph: Radiograph) -> tuple[GateReason, ...]:
    """Judge what the file says of itself; the pixels need not be there."""
    return (*_kind(radiograph), *_anatomy(radiograph))


def _kind(radiograph: Radiograph) -> list[GateReason]:
    """Modality and SOP class."""
    modality, sop_class = radiograph.modality, radiograph.sop_class_uid
    if modality and modality not in _RADIOGRAPHY:
        return [
            GateReason(
                "wrong_modality",
                f"The image is of modality {modality}; only projection radiographs (CR, DX) are reported.",
                "Send the chest radiograph.",
            )
        ]
    if sop_class == _DX_FOR_PROCESSING:
        return [
            GateReason(
                "for_processing",
                "The image is the detector's raw data (For Processing), which is not meant to be looked at.",
                "Send the image For Presentation.",
            )
        ]
    if sop_class and not modality and sop_class not in (_CR, _DX):
        return [
            GateReason(
                "modality_missing",
                "The file does not say its modality (0008,0060), and its SOP class leaves it open.",
                "Export the original radiograph; a secondary capture needs Modality CR or DX.",
            )
        ]
    known = sop_class in ("", _CR, _DX) or sop_class.startswith(_SECONDARY_CAPTURE)
    if not known:
        return [
            GateReason(
                "wrong_object",
                "The object is no radiograph (neither CR, DX nor secondary capture), whatever modality it names.",
                "Send the chest radiograph.",
            )
        ]
    return []


def _anatomy(radiograph: Radiograph) -> list[GateReason]:
    """Body part and view."""
    part, view = radiograph.body_part, radiograph.view_position
    reasons = []
    if part and not any(word in part for word in _CHEST):
        reasons.append(
            GateReason(
                "wrong_body_part",
                f"The body part is {part}; only chest radiographs are reported.",
                "Send the chest radiograph, or correct Body Part Examined (0018,0015) if it is one.",
            )
        )
    if is_lateral(radiograph):
        reasons.append(
            GateReason(
                "lateral_view",
                f"The view is {view} (lateral or oblique); only frontal views are reported.",
                "Send the PA or AP view.",
            )
        )
    elif view in _DECUBITUS:
        reasons.append(
            GateReason(
                "unsupported_view",
                f"The view is {view} (lying on the side); only upright and supine frontal views are reported.",
                "Send the PA or AP view.",
            )
        )
    return reasons


def _size(radiograph: Radiograph) -> list[GateReason]:
    """Enough pixels."""
    rows, columns = radiograph.pixels.shape
    if min(rows, columns) >= MIN_SIDE:
        return []
    return [
        GateReason(
            "too_small",
            f"The image has {rows} x {columns} pixels; at least {MIN_SIDE} in each direction are needed.",
            "Send the original image, no thumbnail.",
        )
    ]


def judge(seen: Look) -> list[GateReason]:
    """What the grey values say against reporting; empty when nothing does."""
    if seen.flat > _MAX_FLAT:
        return [
            GateReason(
                "blank",
                f"{seen.flat:.0%} of the image has one grey value: it is nearly all black or white.",
                "Check the window of the image and that it was transferred whole, then send it again.",
            )
        ]
    nearest = min(seen.distance, seen.distance_inverted, seen.distance_turned)
    certain = nearest <= _MAX_DISTANCE and seen.detail <= _MAX_DETAIL
    if certain and seen.polarity >= _MIN_POLARITY and seen.upright >= _MIN_UPRIGHT:
        return [] if seen.distance <= _MAX_DISTANCE else [_NOT_CHEST_LIKE]
    if not certain or nearest == seen.distance:
        return [_NOT_CHEST_LIKE]
    return [_INVERTED if nearest == seen.distance_inverted else _TURNED]
