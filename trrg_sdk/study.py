"""Which image of a study is reported: the best frontal one that the gate accepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trrg_sdk.dicom import Radiograph, pick_frontal
from trrg_sdk.errors import InputError, RefusedError
from trrg_sdk.gate import check
from trrg_sdk.report import GateReason, GateResult, ImageInfo


class Selection(NamedTuple):
    """The image to report and what became of the others.

    Attributes:
        radiograph: The chosen image.
        gate: Why the others were not chosen, in the order of the input.
        images: Every image that could be read, in the order of the input.
    """

    radiograph: Radiograph
    gate: GateResult
    images: tuple[ImageInfo, ...]


def select(candidates: Sequence[Radiograph | InputError]) -> Selection:
    """Choose the image to report.

    Args:
        candidates: At least one image of one study, or the error that stands for it.

    Returns:
        The choice.

    Raises:
        InputError: The only candidate could not be read: that error.
        RefusedError: No image may be reported; it carries the reasons of all of them.
    """
    if len(candidates) == 1 and isinstance(candidates[0], InputError):
        raise candidates[0]
    refused = [_reasons(candidate) for candidate in candidates]
    accepted = [item for item, why in zip(candidates, refused, strict=True) if isinstance(item, Radiograph) and not why]
    if not accepted:
        raise _refusal([reason for reasons in refused for reason in reasons])
    chosen, others = pick_frontal(accepted)
    unused = {id(radiograph): (reason,) for radiograph, reason in others}
    why_not = [unused.get(id(item), reasons) for item, reasons in zip(candidates, refused, strict=True)]
    images = tuple(
        _image_info(item, reasons)
        for item, reasons in zip(candidates, why_not, strict=True)
        if isinstance(item, Radiograph)
    )
    return Selection(chosen, GateResult(reasons=tuple(reason for reasons in why_not for reason in reasons)), images)


def _reasons(candidate: Radiograph | InputError) -> tuple[GateReason, ...]:
    if isinstance(candidate, InputError):
        return (GateReason(candidate.code, str(candidate), "Export this image again, or leave it out."),)
    return check(candidate)


def _refusal(reasons: Sequence[GateReason]) -> RefusedError:
    first = reasons[0]
    return RefusedError(f"{first.message} {first.action}", code=first.code, reasons=reasons)


def _image_info(radiograph: Radiograph, reasons: Sequence[GateReason]) -> ImageInfo:
    why = " ".join(reason.message for reason in reasons)
    return ImageInfo(radiograph.sop_instance_uid, radiograph.view_position, used=not reasons, reason=why)
