"""May this image be reported? Every reason why not, in words that a technician can act on.

What the file says of itself is judged first: modality, body part, view. Only an image that passes is looked at, since
a polarity score of a CT slice means nothing. All codes with their sentences stand in ``trrg_sdk.gate_codes``.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from trrg_sdk.dicom import Radiograph, is_lateral
from trrg_sdk.gate_codes import reason
from trrg_sdk.gate_specs import ANYBODY, PopulationSpec
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
_SIDEWAYS = ("LATERAL", "LL", "RL")  # what "LL" among a bundle's views stands for; obliques are none of them

# Limits of the image's own scores; what they cost and find is measured by tests/benchmarks/gate_photometry.py.
_MAX_FLAT = 0.9
_MAX_END = 0.9  # of the pixels in the darkest or brightest twentieth of the range; 0.47 is the most of 1,018 films
_GROUND = 0.6  # a plain ground is at least so much of a page
_MIN_INK = 0.4  # of the rest; 0.37 is the most of narrowly windowed CT slices, 0.11 of 1,018 films
_MIN_WRITING = 0.002  # fewer pixels at the other end are dead ones
_MAX_DISTANCE = 2.1
_MAX_DETAIL = 0.85  # noise has more
_MIN_DETAIL = 0.01  # a ramp has less; 0.019 is the least of 1,018 films
_MIN_POLARITY = 1.0
_MIN_UPRIGHT = -0.5


def check(
    radiograph: Radiograph, *, population: PopulationSpec = ANYBODY, accept: AbstractSet[str] = frozenset()
) -> tuple[GateReason, ...]:
    """Judge one image.

    Args:
        radiograph: As loaded. What its file does not say (an array says nothing) is left to the image itself.
        population: Whom and what the bundle was trained on.
        accept: Codes that the caller overrides. Their reasons are found all the same; what is looked at only when
            nothing spoke against the image before is then looked at too.

    Returns:
        All reasons against reporting it, the most telling first; empty when it may be reported.
    """
    reasons = [*declared(radiograph, population=population), *_size(radiograph)]
    if _stands(reasons, accept):
        seen = look(radiograph.pixels)
        reasons += _emptiness(seen)
        if _stands(reasons, accept) and not is_wanted_lateral(radiograph, population):
            reasons += _shape(seen)
    return tuple(reasons)


def declared(radiograph: Radiograph, *, population: PopulationSpec = ANYBODY) -> tuple[GateReason, ...]:
    """Judge what the file says of itself; the pixels need not be there."""
    return (*_kind(radiograph), *_anatomy(radiograph, population), *_age(radiograph, population))


def is_wanted_lateral(radiograph: Radiograph, population: PopulationSpec) -> bool:
    """Whether it is a lateral view of a kind that the bundle was trained on."""
    return population.laterals and radiograph.view_position in _SIDEWAYS


def judge(seen: Look) -> list[GateReason]:
    """What the grey values say against reporting; empty when nothing does."""
    return _emptiness(seen) or _shape(seen)


def _stands(reasons: Iterable[GateReason], accept: AbstractSet[str]) -> bool:
    return all(found.code in accept for found in reasons)


def _kind(radiograph: Radiograph) -> list[GateReason]:
    """Modality and SOP class."""
    modality, sop_class = radiograph.modality, radiograph.sop_class_uid
    if modality and modality not in _RADIOGRAPHY:
        return [reason("wrong_modality", modality=modality)]
    if sop_class == _DX_FOR_PROCESSING:
        return [reason("for_processing")]
    if sop_class and not modality and sop_class not in (_CR, _DX):
        return [reason("modality_missing")]
    known = sop_class in ("", _CR, _DX) or sop_class.startswith(_SECONDARY_CAPTURE)
    return [] if known else [reason("wrong_object")]


def _anatomy(radiograph: Radiograph, population: PopulationSpec) -> list[GateReason]:
    """Body part and view."""
    part, view = radiograph.body_part, radiograph.view_position
    reasons = []
    if part and not any(word in part for word in _CHEST):
        reasons.append(reason("wrong_body_part", part=part))
    if is_wanted_lateral(radiograph, population):
        return reasons
    if is_lateral(radiograph):
        reasons.append(reason("lateral_view", view=view))
    elif view in _DECUBITUS or (view in ("PA", "AP") and view not in population.views):
        reasons.append(reason("unsupported_view", view=view, views=" and ".join(population.views)))
    return reasons


def _age(radiograph: Radiograph, population: PopulationSpec) -> list[GateReason]:
    """Old enough for the bundle, where the file says how old. The age itself is said nowhere: it is the patient's."""
    age, least = radiograph.patient_age_years, population.minimum_age
    return [] if age is None or least is None or age >= least else [reason("paediatric_age", least=least)]


def _size(radiograph: Radiograph) -> list[GateReason]:
    """Enough pixels."""
    rows, columns = radiograph.pixels.shape
    if min(rows, columns) >= MIN_SIDE:
        return []
    return [reason("too_small", rows=rows, columns=columns, least=MIN_SIDE)]


def _emptiness(seen: Look) -> list[GateReason]:
    """Something of a body must be there to see."""
    ground, other = max(seen.dark, seen.bright), min(seen.dark, seen.bright)
    if ground > _GROUND and other > max(_MIN_WRITING, _MIN_INK * (1 - ground)):
        return [reason("burnt_in_only")]
    if seen.flat > _MAX_FLAT or ground > _MAX_END:
        colour = "black" if ground == seen.dark > _GROUND else "white" if ground > _GROUND else "grey"
        return [reason("mostly_blank", share=max(seen.flat, ground), colour=colour)]
    return []


def _shape(seen: Look) -> list[GateReason]:
    """An upright frontal chest of the right polarity."""
    nearest = min(seen.distance, seen.distance_inverted, seen.distance_turned)
    certain = nearest <= _MAX_DISTANCE and _MIN_DETAIL <= seen.detail <= _MAX_DETAIL
    if certain and seen.polarity >= _MIN_POLARITY and seen.upright >= _MIN_UPRIGHT:
        return [] if seen.distance <= _MAX_DISTANCE else [reason("not_chest_like")]
    if not certain or nearest == seen.distance:
        return [reason("not_chest_like")]
    return [reason("inverted" if nearest == seen.distance_inverted else "turned")]
