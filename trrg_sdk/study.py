"""Which image of a study is reported: the best frontal one that the gate accepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import NamedTuple

from trrg_sdk.dicom import Radiograph, pick_frontal
from trrg_sdk.errors import InputError, RefusedError
from trrg_sdk.gate import check
from trrg_sdk.gate_codes import REFUSALS
from trrg_sdk.gate_specs import ANYBODY, PopulationSpec
from trrg_sdk.report import GateReason, GateResult, ImageInfo

_NOTHING: Mapping[int, Sequence[GateReason]] = MappingProxyType({})


class Selection(NamedTuple):
    """The image to report and what became of the others.

    Attributes:
        radiograph: The chosen image.
        gate: Why the others were not chosen, in the order of the input, and what of the gate was overridden.
        images: Every image that could be read, in the order of the input.
    """

    radiograph: Radiograph
    gate: GateResult
    images: tuple[ImageInfo, ...]


def select(
    candidates: Sequence[Radiograph | InputError],
    *,
    population: PopulationSpec = ANYBODY,
    accept: AbstractSet[str] = frozenset(),
    perceived: Mapping[int, Sequence[GateReason]] = _NOTHING,
) -> Selection:
    """Choose the image to report; one that needs no override comes before those that do.

    Args:
        candidates: At least one image of one study, or the error that stands for it.
        population: Whom and what the bundle was trained on.
        accept: Codes of the gate that the caller overrides.
        perceived: Place of a candidate → what the model's own look at it says against it.

    Returns:
        The choice.

    Raises:
        InputError: The only candidate could not be read: that error.
        RefusedError: No image may be reported; it carries the reasons of all of them.
    """
    if len(candidates) == 1 and isinstance(candidates[0], InputError):
        raise candidates[0]
    found = [
        (*_reasons(candidate, population, accept), *perceived.get(place, ()))
        for place, candidate in enumerate(candidates)
    ]
    against = [[reason for reason in reasons if reason.code not in accept] for reasons in found]
    passed = [item for item, why in zip(candidates, against, strict=True) if isinstance(item, Radiograph) and not why]
    if not passed:
        raise _refusal([reason for reasons in against for reason in reasons])
    reasons_of = {id(item): reasons for item, reasons in zip(candidates, found, strict=True)}
    unaided = [item for item in passed if not reasons_of[id(item)]]
    chosen, others = pick_frontal(unaided or passed, laterals=population.laterals or "lateral_view" in accept)
    unused = {id(chosen): ()} | {id(item): reasons_of[id(item)] or (reason,) for item, reason in others}
    why_not = [unused.get(id(item), reasons) for item, reasons in zip(candidates, found, strict=True)]
    return _selection(candidates, chosen, why_not, overridden=reasons_of[id(chosen)])


def _selection(
    candidates: Sequence[Radiograph | InputError],
    chosen: Radiograph,
    why_not: Sequence[tuple[GateReason, ...]],
    *,
    overridden: tuple[GateReason, ...],
) -> Selection:
    images = tuple(
        _image_info(item, reasons, used=item is chosen)
        for item, reasons in zip(candidates, why_not, strict=True)
        if isinstance(item, Radiograph)
    )
    gate = GateResult(
        status="overridden" if overridden else "accepted",
        reasons=tuple(reason for reasons in why_not for reason in reasons),
        overridden=overridden,
    )
    return Selection(chosen, gate, images)


def _reasons(
    candidate: Radiograph | InputError, population: PopulationSpec, accept: AbstractSet[str]
) -> tuple[GateReason, ...]:
    if isinstance(candidate, InputError):
        return (GateReason(candidate.code, str(candidate), REFUSALS[candidate.code].action),)
    return check(candidate, population=population, accept=accept)


def _refusal(reasons: Sequence[GateReason]) -> RefusedError:
    first = reasons[0]
    return RefusedError(f"{first.message} {first.action}", code=first.code, reasons=reasons)


def _image_info(radiograph: Radiograph, reasons: Sequence[GateReason], *, used: bool) -> ImageInfo:
    why = " ".join(reason.message for reason in reasons)
    return ImageInfo(radiograph.sop_instance_uid, radiograph.view_position, used=used, reason=why)
