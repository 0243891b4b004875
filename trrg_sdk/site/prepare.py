"""The images of a study, given one after the other until one can be reported."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field, replace

from trrg_sdk.dicom import why_not
from trrg_sdk.dicom_header import Header, read_header
from trrg_sdk.errors import DicomError, InputError, RefusedError
from trrg_sdk.gate import declared
from trrg_sdk.gate_codes import REFUSALS, reason
from trrg_sdk.gate_specs import PopulationSpec
from trrg_sdk.report import GateReason, ImageInfo, Report
from trrg_sdk.site import fingerprint
from trrg_sdk.site.studies import Image, Study
from trrg_sdk.site.walk import Found, Tree

MAX_TRIES = 8
"""Images of a study that are decoded; behind that many bad ones there is no good one."""

MAX_LISTED = 16
"""Images whose header is read again, to list them in the report."""

_CUT_OFF = ("truncated", "corrupt", "bad_size", "no_pixels")
_UNREADABLE = "a file of the study cannot be read; check the disk and the rights"
_UNREAD = ("corrupt", "too_complex", "unreadable")


@dataclass(frozen=True, slots=True)
class Task:
    """A study to report.

    Attributes:
        study: Which.
        population: Whom and what the bundle was trained on.
        before: The fingerprint that the ledger has of it, which decides whether it is reported again; None where the
            ledger does not have the study.
        first: Place of the candidate to begin with; those before it were refused.
        reasons: Why they were.
        content: The fingerprint, b"" when it is not known yet.
        refused: The gate refused an image: it could be read.
    """

    study: Study
    population: PopulationSpec
    before: bytes | None = None
    first: int = 0
    reasons: tuple[GateReason, ...] = ()
    content: bytes = b""
    refused: bool = False


class Source:
    """Gives the bytes of an image.

    Attributes:
        fingerprint: Of a study of this image alone, so that its file is read once; b"" before it was read, and where
            it was not asked for.
    """

    def __init__(self, tree: Tree, found: Found, *, alone: bool = False) -> None:
        """Read nothing yet."""
        self._tree, self._found, self._alone, self.fingerprint = tree, found, alone, b""

    def __call__(self) -> bytes:
        """Read the file; ``OSError`` when that is impossible."""
        content = self._tree.read(self._found)
        if self._alone:
            self.fingerprint = fingerprint.of_parts([fingerprint.of_bytes(content)])
        return content


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is to be reported of a study.

    Attributes:
        task: With its fingerprint unless ``image`` finds it, and all reasons when there is no image.
        image: Gives the bytes of the image to report; None when there is none.
        error: Why there is none.
        young: Whether its files may still be being written.
    """

    task: Task
    image: Source | None = field(default=None, repr=False)
    error: InputError | None = None
    young: bool = False

    @property
    def content(self) -> bytes:
        """The fingerprint of the study; b"" when its files cannot be read."""
        return self.task.content or (self.image.fingerprint if self.image else b"")

    @property
    def waiting(self) -> bool:
        """Whether there is no image because the first one has not arrived yet."""
        return self.young and self.error is not None and not self.task.study.candidates

    def is_cut_off(self, error: InputError) -> bool:
        """Whether what went wrong with the image may be that it is still being written."""
        return self.young and isinstance(error, DicomError) and error.code in _CUT_OFF

    def retry(self, error: DicomError | RefusedError) -> Task:
        """Go on with the next image: this one cannot be decoded, or the gate refused it."""
        if isinstance(error, RefusedError):
            new = tuple(found for found in error.reasons if isinstance(found, GateReason))
        else:
            new = (GateReason(error.code, str(error), REFUSALS[error.code].action),)
        refused = self.task.refused or isinstance(error, RefusedError)
        reasons = (*self.task.reasons, *new)
        return replace(self.task, first=self.task.first + 1, reasons=reasons, content=self.content, refused=refused)


def prepare(tree: Tree, task: Task, *, young_s: float) -> Prepared:
    """Find the next image, and take the study's fingerprint.

    Args:
        tree: Where the files are.
        task: Which study, and which of its images.
        young_s: A study that changed less than so many seconds ago may still be being written.
    """
    young = time.time() - task.study.newest_ns() / 1e9 < young_s
    candidates = task.study.candidates
    if len(candidates) == 1 and not task.first and task.before is None:
        return Prepared(task, Source(tree, candidates[0].found, alone=True), young=young)
    try:
        task = task if task.content else replace(task, content=_content(tree, task))
    except OSError:
        return Prepared(task, error=InputError(_UNREADABLE, code="unreadable"))
    if task.first < min(len(candidates), MAX_TRIES):
        return Prepared(task, Source(tree, candidates[task.first].found), young=young)
    task, error = _refusal(tree, task)
    return Prepared(task, error=error, young=young)


def _content(tree: Tree, task: Task) -> bytes:
    """The fingerprint of all candidates; of a study without any, of what its headers said. ``OSError``: one is gone."""
    like = task.before or b""
    if not task.study.candidates:
        parts = [image.entry.instance + image.code.encode() for image in task.study.left_out]
    else:
        parts = [_digest(tree, image, like) for image in task.study.candidates]
    return fingerprint.of_parts(parts, like=like)


def _digest(tree: Tree, image: Image, like: bytes) -> bytes:
    with closing(tree.open(image.found)) as stream:
        return fingerprint.of_stream(stream, like=like)


def _refusal(tree: Tree, task: Task) -> tuple[Task, InputError]:
    """Say all reasons, with a ``RefusedError`` when some image could be read, else with a ``DicomError``."""
    left_out = task.study.left_out
    reasons = [
        *task.reasons,
        *(_why_not(image, _header(tree, image), task.population) for image in left_out[:MAX_LISTED]),
    ]
    if len(task.study.candidates) > MAX_TRIES:
        reasons.append(reason("too_many_images", tried=MAX_TRIES, count=len(task.study.candidates)))
    task = replace(task, reasons=tuple(reasons))
    message, code = f"{reasons[0].message} {reasons[0].action}", reasons[0].code
    if task.refused or any(image.code not in _UNREAD for image in left_out):
        return task, RefusedError(message, code=code, reasons=reasons)
    return task, DicomError(message, code=code)


def complete(report: Report, tree: Tree, prepared: Prepared) -> Report:
    """Add to the report of one image what became of the others of its study."""
    study = prepared.task.study
    if len(study.candidates) + len(study.left_out) == 1:
        return report
    chosen = next(image for image in report.images if image.used)
    place = prepared.task.first
    tried = list(zip(study.candidates[:place], prepared.task.reasons, strict=False))
    untried = [(image, None) for image in study.candidates[place + 1 :]]
    others = [*tried, *untried, *((image, None) for image in study.left_out)][:MAX_LISTED]
    images, reasons = [], []
    for image, known in others:
        header = _header(tree, image)
        why = known or _why_not(image, header, prepared.task.population, chosen)
        reasons.append(why)
        if header is not None and header.rows:
            described = header.described
            images.append(ImageInfo(described.sop_instance_uid, described.view_position, False, why.message))
    return replace(report, images=(*report.images, *images), gate=replace(report.gate, reasons=tuple(reasons)))


def _why_not(
    image: Image, header: Header | None, population: PopulationSpec, chosen: ImageInfo | None = None
) -> GateReason:
    if image.code in ("duplicate", "no_pixels"):
        return reason(image.code)
    if header is None:
        return reason(image.code if image.code in _UNREAD else "unreadable")
    against = declared(header.described, population=population)
    said = sorted(against, key=lambda found: found.code != image.code)  # not one that is overridden
    if said or chosen is None:
        return said[0] if said else reason("unreadable")  # it is another file by now
    return reason("derived") if header.derived else why_not(chosen.view)


def _header(tree: Tree, image: Image) -> Header | None:
    try:
        with closing(tree.open(image.found)) as stream:
            return read_header(stream)
    except (OSError, DicomError):
        return None
